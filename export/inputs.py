"""What calibration knows of the inputs of a GGUF matrix: what it knows of those matrices that its rows come from.

All rows of a matrix multiply the same inputs, so one of several joined sources answers for all. Measuring is
`quant.calibration`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.export.rows import Rows
    from edgepack.quant.calibration.statistics import LinearStatistics


def input_statistics(rows: Rows, known: Mapping[str, LinearStatistics]) -> LinearStatistics | None:
    """Moments of the inputs of a matrix, in the order of its columns; None where none were measured.

    Args:
        rows: of the matrix [out, in]; stacks of experts and vectors have no inputs of their own.
        known: checkpoint name → moments of that matrix's inputs.
    """
    origin = rows.origin
    if len(rows.shape) != 2 or not origin.is_linear:
        return None
    for name in origin.names:
        found = known.get(name)
        if found is not None and found.mean_square.shape == rows.shape[-1:]:
            return found if origin.columns is None else found.reordered(origin.columns)
    return None
