"""Rows whose bytes a pass has already chosen: export takes them as they are instead of quantising again.

How bytes are chosen is left to `quant.passes`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgepack.errors import RecipeError
from edgepack.export.arranged_rows import WrappedRows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgepack.export.plan import ExportPlan, PlannedTensor
    from edgepack.gguf.types import GGMLType
    from edgepack.quant.passes.coded_rows import CodedRows


@dataclass(frozen=True)
class CodedTensorRows(WrappedRows):
    """Rows of a GGUF tensor whose bytes a pass has already chosen.

    Attributes:
        base: the rows as floats.
        coded: bytes by row.
        stored_type: the type of the bytes.
    """

    coded: CodedRows
    stored_type: GGMLType

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """As `Rows.read`."""
        return self.base.read(start, stop)

    def read_blocks(self, start: int, stop: int) -> NDArray[np.uint8]:
        """As `StoredBlocks.read_blocks`; raises RecipeError where a row is not one that the pass has left."""
        found = self.coded.find(self.stored_type, self.base.read(start, stop))
        if found is None:
            raise RecipeError("gptq: the weights were changed after they had been rounded for the file")
        return found


def with_coded_rows(plan: ExportPlan, coded: CodedRows) -> ExportPlan:
    """The plan with every tensor that a pass has rounded taken as it is."""

    def wrapped(tensor: PlannedTensor) -> PlannedTensor:
        first = coded.find(tensor.info.type, tensor.rows.read(0, 1)) if len(tensor.info.shape) == 2 else None
        if first is None:
            return tensor
        return replace(tensor, rows=CodedTensorRows(tensor.rows, coded, tensor.info.type))

    return replace(plan, tensors=tuple(wrapped(tensor) for tensor in plan.tensors))
