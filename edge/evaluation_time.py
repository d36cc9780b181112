"""Times evaluation alone, the same way for `bench` and for `fit_probe`, so that one predicts the other."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgepack.edge.llama.runtime import LoadedModel


def evaluation_seconds(model: LoadedModel, pieces: Sequence[NDArray[Any]]) -> float:
    """Seconds that evaluating `pieces` one after the other takes, from an empty KV cache; nothing is sampled."""
    model.clear()
    started = time.perf_counter()
    for piece in pieces:
        model.extend(piece)
    return time.perf_counter() - started
