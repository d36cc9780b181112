"""Factors of the curvature of matrices: made once and kept on disk; making them is `quant`'s."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections import defaultdict
from threading import Lock
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch

from edgepack.quant.codecs.torch_threads import one_thread
from edgepack.quant.feedback import FeedbackFactor, feedback_factor
from edgepack.quant.row_feedback import RowFeedback

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

Factor = TypeVar("Factor")


class KeptFactors(ABC, Generic[Factor]):
    """Factors by a name.

    Args:
        folder: of these factors alone.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._locks = folder, defaultdict[str, Lock](Lock)
        folder.mkdir(parents=True, exist_ok=True)

    def __reduce__(self) -> tuple[type[KeptFactors[Factor]], tuple[Path]]:
        """Another process takes them up from their folder."""
        return type(self), (self._folder,)

    def get(self, name: str, matrix: Callable[[], torch.Tensor]) -> Factor:
        """The factor of that name; `matrix` gives what it is made of and is only called where nothing is kept.

        Threads may ask at once.

        Raises:
            NumericError: as `feedback_factor`.
        """
        with self._locks[name]:
            return self._get(name, matrix)

    def _get(self, name: str, matrix: Callable[[], torch.Tensor]) -> Factor:
        path = self._folder / f"{name}.npz"
        if path.is_file():
            with np.load(path) as kept:
                return self._read(kept)
        factor = self._made(matrix(), name)
        partial = self._folder / f"partial-{secrets.token_hex(4)}-{name}.npz"  # other processes may make it too
        np.savez(partial, **self._arrays(factor))
        partial.replace(path)
        return factor

    @abstractmethod
    def _made(self, matrix: torch.Tensor, name: str) -> Factor: ...

    @abstractmethod
    def _arrays(self, factor: Factor) -> dict[str, Any]: ...

    @abstractmethod
    def _read(self, kept: Mapping[str, Any]) -> Factor: ...


class FeedbackFactors(KeptFactors[FeedbackFactor]):
    """Of H [in, in], by the name of their inputs."""

    def _made(self, matrix: torch.Tensor, name: str) -> FeedbackFactor:
        return feedback_factor(matrix, name=name)

    def _arrays(self, factor: FeedbackFactor) -> dict[str, Any]:
        return {"upper": factor.upper.numpy(), "dead": factor.dead.numpy(), "damping": factor.damping}

    def _read(self, kept: Mapping[str, Any]) -> FeedbackFactor:
        upper, dead = torch.from_numpy(kept["upper"]), torch.from_numpy(kept["dead"])
        return FeedbackFactor(upper, float(kept["damping"]), dead)


class RowFactors(KeptFactors[RowFeedback]):
    """Of G [out, out], by the name of their matrix."""

    def _made(self, matrix: torch.Tensor, name: str) -> RowFeedback:
        with one_thread():  # sums of torch depend on how many threads share them
            return RowFeedback.of(matrix)

    def _arrays(self, factor: RowFeedback) -> dict[str, Any]:
        return {"order": factor.order.numpy(), "upper": factor.upper.numpy(), "diagonal": factor.diagonal}

    def _read(self, kept: Mapping[str, Any]) -> RowFeedback:
        order, upper = torch.from_numpy(kept["order"]), torch.from_numpy(kept["upper"])
        return RowFeedback(order, upper, float(kept["diagonal"]))
