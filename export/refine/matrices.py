"""One matrix of a refined file: its curvature, the factors made of it, and its rounding.

Which types matrices get is `model`'s to say, what rounding does `quant.refine.rounding`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.errors import UnsupportedModelError
from edgepack.export.refine.factors import FeedbackFactors, RowFactors
from edgepack.quant.codecs.ggml.codec import quantize_rows
from edgepack.quant.refine.rounding import REFINED_TYPES, Refined, refine_matrix, row_losses

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from edgepack.export.plan import PlannedTensor
    from edgepack.export.refine.values import RefineSettings
    from edgepack.export.wire.curvatures import MatrixCurvatures
    from edgepack.gguf.types import GGMLType, TensorInfo
    from edgepack.quant.feedback import FeedbackFactor
    from edgepack.quant.row_feedback import RowFeedback


class CurvedMatrices:
    """Matrices with what is known of their curvature.

    Args:
        costs: the curvature.
        settings: how the file is refined.
        scratch: a folder, in which factors are kept.
    """

    def __init__(self, costs: MatrixCurvatures, settings: RefineSettings, scratch: Path) -> None:
        self.costs, self._settings = costs, settings
        self._factors, self._row_factors = FeedbackFactors(scratch / "factors"), RowFactors(scratch / "row-factors")

    def has(self, tensor: PlannedTensor) -> bool:
        """Whether a tensor is quantised and all its rows have a curvature."""
        if not tensor.info.type.is_quantized or len(tensor.info.shape) not in (2, 3):
            return False
        try:
            return self.costs.known(tensor.info)
        except UnsupportedModelError:  # computed or transposed rows
            return False

    def factor(self, info: TensorInfo, expert: int, inputs: torch.Tensor) -> FeedbackFactor:
        """The factor of `inputs`; columns that stand in another order have one of their own."""
        name = self.costs.inputs_of(info, expert)
        if self.costs.origins.of(info.name).columns is not None:
            name = f"{name}-{info.name}"
        return self._factors.get(name, lambda: inputs)

    def joint(self, info: TensorInfo) -> torch.Tensor | None:
        """G, float32 [rows, rows], where it was kept and the settings use it; else None."""
        return self.costs.joint(info) if self._settings.joint else None

    def row_factor(self, info: TensorInfo, joint: torch.Tensor) -> RowFeedback:
        """The factor of a matrix's G."""
        return self._row_factors.get(info.name, lambda: joint)

    def round(
        self,
        info: TensorInfo,
        expert: int,
        weights: torch.Tensor,
        costs: torch.Tensor,
        kind: GGMLType,
        threads: int,
        rate: float = 0.0,
    ) -> Refined:
        """Round rows of a matrix, or of one expert of a stack.

        Args:
            info: of the tensor.
            expert: its number; 0 for a matrix.
            weights: float32 [rows, in].
            costs: diagonal of G, float32 [rows]; or all of it [rows, rows], of the whole matrix.
            kind: the type.
            threads: that share the rows.
            rate: nats a token that a bit in the archive is worth.

        Raises:
            NumericError: as `refine_matrix`.
        """
        inputs = self.costs.inputs(info, expert)
        if kind.is_quantized and self._settings.feedback:
            rows = self.row_factor(info, costs) if costs.ndim == 2 and kind in REFINED_TYPES else None
            return refine_matrix(
                weights, self.factor(info, expert, inputs), kind, inputs=inputs, row_costs=costs, threads=threads,
                rate=rate, row_feedback=rows,
            )  # fmt: skip
        plain = quantize_rows(kind, weights.numpy(), inputs.diagonal().numpy() if kind.is_quantized else None)
        return Refined(plain, 0.5 * float(row_losses(weights, kind, plain, inputs) @ costs.double().numpy()))
