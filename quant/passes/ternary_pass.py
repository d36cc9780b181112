"""Declares the pass `ternary`; the work is `quant.passes.ternary`'s."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.errors import RecipeError
from edgepack.quant.passes.registry import ROUNDED, ZEROS, PassDeclaration, always, never
from edgepack.quant.passes.settings import Setting
from edgepack.quant.passes.training import LEARNING_KEYS, check_learning

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.model import Checkpoint
    from edgepack.quant.passes.run import PassOutcome, PassRun
    from edgepack.quant.passes.settings import Settings

_RATE = 5e-4  # weights must cross half a scale: more than recovery's


def _check(settings: Settings, _given: frozenset[str], path: str) -> None:
    check_learning(settings, path)
    if settings["layer"] is not None and not settings["relations"]:
        raise RecipeError(f"{path}.layer: its relations are not compared: relations = 0")


def _leaves(_settings: Settings) -> Mapping[str, str]:
    return {ROUNDED: "which has made the weights ternary: nothing may change them any more"}


def _run(checkpoint: Checkpoint, settings: Settings, run: PassRun) -> PassOutcome:
    from edgepack.quant.learning.lessons import learning_settings, with_own_defaults
    from edgepack.quant.passes.ternary.linear import BLOCK
    from edgepack.quant.passes.ternary.training import TernarySettings, train_ternary

    chosen = TernarySettings(
        BLOCK if settings["scale"] == "block" else 0, settings["ramp"], settings["activations"] == "int8",
        settings["norms"], settings["relations"], settings["layer"],
    )  # fmt: skip
    return train_ternary(checkpoint, chosen, learning_settings(with_own_defaults(settings, rate=_RATE), run), run)


PASS = PassDeclaration(
    name="ternary",
    summary="weights become -s, 0 or s while the model learns from its own answers",
    settings={
        "scale": Setting("text", ("block", "tensor"), default="block"),
        "ramp": Setting("number", low=0, high=1, default=0.4),
        "activations": Setting("text", ("int8", "float"), default="int8"),
        "norms": Setting("flag", default=False),
        "relations": Setting("number", low=0, high=1000, default=0.1),
        "layer": Setting("whole", low=0, high=10_000),
        **LEARNING_KEYS,
    },
    check=_check,
    depends_on_target=never,
    is_correction=never,
    needs_tokens=always,
    leaves=_leaves,
    undoes=frozenset({ROUNDED, ZEROS}),
    run=_run,
)
