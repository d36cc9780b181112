"""The keys that every pass that trains has in a recipe; values only, no torch.

What is done with them is `quant.learning.lessons`'.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from edgepack.errors import RecipeError
from edgepack.quant.learning.settings import MOST_STEPS, SCHEDULES
from edgepack.quant.passes.settings import Setting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.quant.passes.settings import Settings

HELD_OUT = 0.05  # of the sequences, to judge by
LEARNING_KEYS: Mapping[str, Setting] = {
    "steps": Setting("whole", low=0, high=MOST_STEPS),
    "batch": Setting("whole", low=1, high=65_536),
    "rate": Setting("number", low=1e-9, high=1),
    "warm_up": Setting("number", low=0, high=1),
    "decay": Setting("text", SCHEDULES),
    "seed": Setting("whole", low=0, high=2**32 - 1),
    "max_memory": Setting("size", low=1, high=2**60),
    "keep_every": Setting("whole", low=0, high=MOST_STEPS),
}
"""The keys of every pass that trains; what stands for an absent one is `DEFAULTS`'."""
DEFAULTS: Mapping[str, Any] = {
    "steps": 2000, "batch": 8, "rate": 1e-4, "warm_up": 0.05, "decay": "cosine", "seed": 0, "keep_every": 200,
}  # fmt: skip


def check_learning(settings: Settings, path: str) -> None:
    """Raise RecipeError where the keys of a run contradict each other."""
    steps, keep = settings["steps"], settings["keep_every"]
    if steps and keep and keep > steps:
        raise RecipeError(f"{path}.keep_every: expected at most the {steps} steps of the run, got {keep}")


def sequences_learnt(settings: Settings) -> int:
    """How many sequences a pass can learn from: one for each place in each batch, and some to judge by; 0 for none.

    A pass that trains is known by its keys.
    """
    if not settings.keys() >= LEARNING_KEYS.keys() or settings.get("schedule") == "once":
        return 0
    steps, batch = (DEFAULTS[key] if settings[key] is None else settings[key] for key in ("steps", "batch"))
    return math.ceil(steps * batch / (1 - HELD_OUT)) + 1 if steps else 0
