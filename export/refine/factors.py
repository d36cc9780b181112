"""Feedback factors of what matrices read: made once and kept on disk; making them is `quant.feedback`'s."""

from __future__ import annotations

import secrets
from collections import defaultdict
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgepack.quant.feedback import FeedbackFactor, feedback_factor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class FeedbackFactors:
    """Factors by the name of their inputs.

    Args:
        folder: of these factors alone.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._locks = folder, defaultdict[str, Lock](Lock)
        folder.mkdir(parents=True, exist_ok=True)

    def __reduce__(self) -> tuple[type[FeedbackFactors], tuple[Path]]:
        """Another process takes them up from their folder."""
        return FeedbackFactors, (self._folder,)

    def get(self, name: str, hessian: Callable[[], torch.Tensor]) -> FeedbackFactor:
        """The factor of inputs; `hessian` gives H [in, in] and is only called where nothing is kept.

        Threads may ask at once.

        Raises:
            NumericError: as `feedback_factor`.
        """
        with self._locks[name]:
            return self._get(name, hessian)

    def _get(self, name: str, hessian: Callable[[], torch.Tensor]) -> FeedbackFactor:
        path = self._folder / f"{name}.npz"
        if path.is_file():
            with np.load(path) as kept:
                upper, dead = torch.from_numpy(kept["upper"]), torch.from_numpy(kept["dead"])
                return FeedbackFactor(upper, float(kept["damping"]), dead)
        factor = feedback_factor(hessian(), name=name)
        partial = self._folder / f"partial-{secrets.token_hex(4)}-{name}.npz"  # other processes may make it too
        np.savez(partial, upper=factor.upper.numpy(), dead=factor.dead.numpy(), damping=factor.damping)
        partial.replace(path)
        return factor
