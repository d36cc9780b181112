"""What a recipe leaves in a GGUF: the importance of its tensors, and the metadata of its passes.

Running passes is `export.recipe.work`'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.export.inputs import input_statistics
from edgepack.gguf import keys
from edgepack.gguf.types import Value, ValueType, boolean, f32, string

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from edgepack.export.mapped import MappedModel
    from edgepack.quant.calibration.collect import Calibration
    from edgepack.quant.passes.recipe import Recipe
    from edgepack.quant.passes.run import Figure


def importance_by_gguf_name(calibration: Calibration, mapped: MappedModel) -> dict[str, NDArray[np.float32]]:
    """E[x²] of every GGUF matrix whose inputs were measured; joined matrices share their inputs."""
    found = {name: input_statistics(rows, calibration.statistics) for name, rows in mapped.tensors.items()}
    return {name: statistics.mean_square for name, statistics in found.items() if statistics is not None}


def recipe_metadata(recipe: Recipe, figures: Sequence[Mapping[str, Figure]]) -> dict[str, Value]:
    """`edgepack.recipe`, and `edgepack.pass.N.KEY` for every figure of pass N (from 0)."""
    metadata = {keys.RECIPE: string(recipe.shown)}
    for number, values in enumerate(figures):
        for key, value in values.items():
            metadata[f"{keys.FIGURES}{number}.{key}"] = _value(value)
    return metadata


def _value(figure: Figure) -> Value:
    if isinstance(figure, bool):
        return boolean(figure)
    if isinstance(figure, int):
        return Value(ValueType.INT64, figure)
    return f32(figure) if isinstance(figure, float) else string(str(figure))
