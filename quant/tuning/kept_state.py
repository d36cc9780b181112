"""Where an interrupted tuning keeps how far it was: files in a folder of its own, each whole or not there.

What a state holds is `loop`'s.
"""

from __future__ import annotations

import pickle
import time
from typing import TYPE_CHECKING, Any

import torch

from edgepack.quant.tuning.targets import Targets

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_STATE, _TARGETS, _STEPS = "state.pt", "targets.pt", "steps.pt"
_SHARE = 20  # of the time since the last one that writing a state may take at most: one part of so many


class KeptState:
    """The state of one run.

    Args:
        folder: exists and belongs to the run.
        seconds: time between two states; 0 keeps every one.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self._path, self._seconds = folder / _STATE, seconds
        self._last, self._cost = time.monotonic(), 0.0
        self.step: int | None = None
        """After which step the state on disk is; None where there is none."""

    def load(self) -> dict[str, Any] | None:
        """The state that is there; None for none, or one that cannot be read."""
        state = _load(self._path)
        self.step = None if state is None else state["step"]
        return state

    def keep(self, state: Callable[[], dict[str, Any]], *, now: bool) -> None:
        """Write the state down if it is time to, or `now` where that has been cheap."""
        passed = time.monotonic() - self._last
        cheap = passed >= _SHARE * self._cost or not self._seconds
        if not cheap or not (now or passed >= self._seconds):
            return
        began, content = time.monotonic(), state()
        _save(self._path, content)
        self.step = content["step"]
        self._last = time.monotonic()
        self._cost = self._last - began


def load_targets(folder: Path) -> tuple[Targets, int] | None:
    """What the original said, and to how many sequences to learn from; None for nothing, or what cannot be read."""
    found = _load(folder / _TARGETS)
    return None if found is None else (Targets(found["tokens"], found["logarithms"]), int(found["asked"]))


def save_targets(folder: Path, targets: Targets, asked: int) -> None:
    """Keep what the original says, and to how many sequences to learn from."""
    _save(folder / _TARGETS, {"tokens": targets.tokens, "logarithms": targets.logarithms, "asked": asked})


def load_steps(folder: Path) -> int | None:
    """How many steps an earlier run found that its minutes give; None for none."""
    found = _load(folder / _STEPS)
    return None if found is None else int(found["steps"])


def save_steps(folder: Path, steps: int) -> None:
    """Keep how many steps there will be."""
    _save(folder / _STEPS, {"steps": steps})


def _load(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError):
        return None
    return found


def _save(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    torch.save(content, partial)
    partial.replace(path)
