"""Feedback factors of input groups: made once a model, kept on disk beside the curvatures, read by every rounding.

How they are made is left to `quant.feedback` and `quant.wire.factor`, which inputs share one to `folding`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgepack.quant.feedback import feedback_factor
from edgepack.quant.wire.factor import SweepFactor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from numpy.typing import NDArray


def typical_factor(factors: Iterable[SweepFactor]) -> SweepFactor:
    """What factors of one width are like: means of their diagonals and noises. It has no coefficients to sweep with."""
    diagonals, noises = zip(*((factor.diagonal, factor.noise) for factor in factors), strict=True)
    diagonal = np.exp(np.mean([np.log(one) for one in diagonals], axis=0)).astype(np.float32)
    return SweepFactor(np.zeros(0, np.float32), diagonal, np.mean(noises, axis=0).astype(np.float32))


@dataclass(frozen=True)
class FactorStore:
    """Factors by the name of a group's first matrix.

    Attributes:
        folder: of this store alone; None keeps nothing.
        feedback: whether errors are fed back; else factors know H's diagonal alone.
    """

    folder: Path | None
    feedback: bool = True

    def get(
        self, name: str, hessian: Callable[[], torch.Tensor], folds: NDArray[np.float64] | None = None
    ) -> SweepFactor:
        """The factor of inputs that were folded.

        Args:
            name: of the first matrix.
            hessian: gives the second moment of the unfolded inputs, [in, in]; only called where nothing is kept.
            folds: what the columns are divided by, [in].

        Raises:
            NumericError: as `feedback_factor`.
        """
        kept = None if self.folder is None else SweepFactor.load(self.folder / name)
        if kept is None:
            moments = hessian()
            moments = moments if self.feedback else torch.diag(moments.diagonal())
            kept = SweepFactor.of(feedback_factor(moments, name=name))
            if self.folder is not None:
                kept.save(self.folder / name)
        return kept if folds is None else kept.folded(folds)
