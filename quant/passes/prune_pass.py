"""Declares the pass `prune`; the work is `quant.passes.prune`'s."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from edgepack.errors import RecipeError
from edgepack.quant.passes.registry import ROUNDED, ZEROS, PassDeclaration, never
from edgepack.quant.passes.settings import Setting
from edgepack.quant.passes.training import DEFAULTS, LEARNING_KEYS, check_learning

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.model import Checkpoint
    from edgepack.quant.passes.prune.weights import PruneSettings
    from edgepack.quant.passes.run import PassOutcome, PassRun
    from edgepack.quant.passes.settings import Settings

GRADUAL = ("every", "ramp", "recover", *LEARNING_KEYS)  # keys of `schedule = "cubic"`
EVERY, RAMP = 100, 0.6  # steps between masks, and the share of the run that sparsity rises over, where nobody says
METHODS = ("magnitude", "wanda", "sparsegpt")  # that set single weights to zero


def pattern_group(pattern: str, path: str = "pattern") -> tuple[int, int]:
    """(zeros, group) of a pattern such as `2:4`; (0, 0) for `unstructured`."""
    if pattern == "unstructured":
        return 0, 0
    match = re.fullmatch(r"(\d{1,4}):(\d{1,4})", pattern)
    if match is None or not 0 < int(match[1]) < int(match[2]):
        raise RecipeError(f"{path}: expected 'unstructured' or N:M with 0 < N < M, such as '2:4', got {pattern!r}")
    return int(match[2]) - int(match[1]), int(match[2])


def _check(settings: Settings, given: frozenset[str], path: str) -> None:
    zeros, group = pattern_group(settings["pattern"], f"{path}.pattern")
    if settings["method"] == "layers":
        _check_layers(settings, given, path)
        return
    if settings["layers"] is not None:
        raise RecipeError(f"{path}.layers: belongs to method 'layers', got method '{settings['method']}'")
    if not group and settings["sparsity"] is None:
        raise RecipeError(f"{path}.sparsity: missing")
    if group and settings["sparsity"] not in (None, zeros / group):
        raise RecipeError(
            f"{path}.sparsity: pattern '{settings['pattern']}' means {zeros / group:g}, got {settings['sparsity']}"
        )
    if group and settings["allocation"] != "uniform":
        raise RecipeError(f"{path}.allocation: pattern '{settings['pattern']}' is the same in every layer")
    _check_schedule(settings, given, path)


def _check_schedule(settings: Settings, given: frozenset[str], path: str) -> None:
    """One shot has no steps; masks come within the run."""
    if settings["schedule"] == "once":
        extra = [key for key in GRADUAL if key in given]
        if extra:
            raise RecipeError(f"{path}.{extra[0]}: belongs to schedule 'cubic', got schedule 'once'")
        return
    check_learning(settings, path)
    steps = DEFAULTS["steps"] if settings["steps"] is None else settings["steps"]
    if steps and (settings["every"] or 1) > steps:
        raise RecipeError(f"{path}.every: expected at most the {steps} steps of the run, got {settings['every']}")


def _check_layers(settings: Settings, given: frozenset[str], path: str) -> None:
    if settings["layers"] is None:
        raise RecipeError(f"{path}.layers: method 'layers' needs how many")
    extra = sorted(given - {"method", "layers"})
    if extra:
        raise RecipeError(f"{path}.{extra[0]}: method 'layers' removes whole layers and has no such setting")


def _needs_tokens(settings: Settings) -> bool:
    """Magnitudes are the weights' own; everything else looks at activations, or learns."""
    looks = settings["method"] != "magnitude" or settings["allocation"] == "owl"
    return bool(looks or settings.get("schedule") == "cubic")


def _leaves(settings: Settings) -> Mapping[str, str]:
    return {} if settings["method"] == "layers" else {ZEROS: "whose zeros it would fill"}


def _run(checkpoint: Checkpoint, settings: Settings, run: PassRun) -> PassOutcome:
    from edgepack.quant.passes.prune.layers import drop_layers
    from edgepack.quant.passes.prune.masks import Pattern
    from edgepack.quant.passes.prune.weights import PruneSettings, comparison, prune_weights

    if settings["method"] == "layers":
        return drop_layers(checkpoint, settings["layers"], run)
    zeros, group = pattern_group(settings["pattern"])
    sparsity = zeros / group if group else settings["sparsity"]
    compare = comparison(checkpoint) if settings["compare"] == "auto" else settings["compare"]
    chosen = PruneSettings(settings["method"], Pattern(sparsity, group, compare), settings["allocation"])
    if settings["schedule"] == "once":
        return prune_weights(checkpoint, chosen, run)
    return _run_gradually(checkpoint, chosen, settings, run)


def _run_gradually(checkpoint: Checkpoint, chosen: PruneSettings, settings: Settings, run: PassRun) -> PassOutcome:
    from edgepack.quant.learning.lessons import learning_settings
    from edgepack.quant.passes.prune.gradual import Rise, prune_gradually

    learning = learning_settings(settings, run)
    ramp = RAMP if settings["ramp"] is None else settings["ramp"]
    rise = Rise(settings["every"] or EVERY, round(ramp * learning.steps))
    return prune_gradually(checkpoint, chosen, rise, settings["recover"] or "logits", learning, run)


PASS = PassDeclaration(
    name="prune",
    summary="weights become zero, or whole blocks go: those that matter least",
    settings={
        "method": Setting("text", (*METHODS, "layers"), default="wanda"),
        "sparsity": Setting("number", low=0, high=1, open_end=True),
        "pattern": Setting("text", default="unstructured"),
        "compare": Setting("text", ("auto", "row", "layer"), default="auto"),
        "allocation": Setting("text", ("uniform", "owl"), default="uniform"),
        "layers": Setting("whole", low=1, high=10_000),
        "schedule": Setting("text", ("once", "cubic"), default="once"),
        "every": Setting("whole", low=1, high=1_000_000),
        "ramp": Setting("number", low=0, high=1),
        "recover": Setting("text", ("logits", "hidden", "text")),
        **LEARNING_KEYS,
    },
    check=_check,
    depends_on_target=never,
    is_correction=never,
    needs_tokens=_needs_tokens,
    leaves=_leaves,
    undoes=frozenset({ROUNDED}),
    run=_run,
)
