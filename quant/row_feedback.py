"""Feedback along the rows of a matrix: how rows that err together make good each other's errors.

With G = E[g gᵀ] of the outputs' gradients and G⁻¹ = UᵀU, an error in a row is made good by rows not yet rounded as
feedback does along columns (GPTQ's update, from the left). Rounding is `refine.two_sided`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Of G's diagonal: what is added to it. With G of 1,536 tokens, less than .3 made some matrices worse under the G of
# other tokens, and more gave away what query rows gain (docs/lab-notes.md).
_SHRINKAGE, _DAMPING = 0.3, 0.01
JOINT_LEFT = 0.5  # of the loss by rows alone: where more is left, G of other tokens gave nothing


@dataclass(frozen=True)
class RowFeedback:
    """How errors of rows are made good by other rows.

    Attributes:
        order: int64 [out]: rows as they are rounded, those whose errors cost most first.
        upper: U with G⁻¹ = UᵀU, float32 [out, out], in that order.
        diagonal: sum of G's.
    """

    order: torch.Tensor
    upper: torch.Tensor
    diagonal: float

    @classmethod
    def of(cls, outputs: torch.Tensor) -> RowFeedback:
        """From G, [out, out], positive semi-definite."""
        diagonal = outputs.diagonal().double()
        order = torch.argsort(-diagonal, stable=True)
        floor = _DAMPING * diagonal.mean().clamp_min(1e-30)
        damped = outputs.double() + torch.diag(_SHRINKAGE * diagonal + floor)
        return cls(order, inverse_upper(damped[order][:, order]).float(), float(damped.diagonal().sum()))

    @property
    def left(self) -> float:
        """What is left of the loss of rows rounded by themselves, predicted: rows' errors given those behind them."""
        pivots = self.upper.diagonal().double().square().reciprocal()
        return float(pivots.sum() / self.diagonal)


def inverse_upper(matrices: torch.Tensor) -> torch.Tensor:
    """U with matrix⁻¹ = UᵀU, [..., n, n], for matrices that are positive definite; as `quant.feedback` computes it."""
    lower = torch.linalg.cholesky(matrices.flip(-1, -2)).flip(-1, -2)
    return torch.linalg.solve_triangular(lower, torch.eye(matrices.shape[-1], dtype=matrices.dtype), upper=True)
