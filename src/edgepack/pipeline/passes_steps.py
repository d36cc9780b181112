"""A recipe's steps as calls of the passes: settings and calibration tokens in, outcome out.

Order, types and files are `pipeline.passes`'; methods are `quant.passes`'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from edgepack.errors import RecipeError
from edgepack.pipeline.recipe import pattern_group

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from edgepack.model import Checkpoint
    from edgepack.pipeline.recipe import PassStep, Recipe
    from edgepack.quant.passes.run import Figure, PassOutcome, PassRun


class Work(Protocol):
    """A recipe under way, as a step sees it."""

    @property
    def checkpoint(self) -> Checkpoint:
        """The model as the steps before left it."""
        ...

    def pass_run(self, with_tokens: bool = True) -> PassRun:
        """What a pass is given now."""
        ...


def calibration_tokens(checkpoint: Checkpoint, recipe: Recipe, device: str = "cpu") -> NDArray[np.int64]:
    """The tokens [sequences, length] that a recipe's `[calibration]` asks for.

    Raises:
        RecipeError: the text cannot be read.
        CalibrationError: the text is too short.
    """
    from pathlib import Path

    from edgepack.quant.calibration.text import own_samples, text_sequences

    asked = recipe.calibration
    if asked["text"] is None:
        return own_samples(
            checkpoint, length=asked["length"], sequences=asked["sequences"], device=device, seed=asked["seed"]
        )
    try:
        text = Path(asked["text"]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"calibration.text: '{asked['text']}' cannot be read as UTF-8 text: {error}") from error
    return text_sequences(checkpoint, text, length=asked["length"], sequences=asked["sequences"])


def short_text_note(tokens: NDArray[np.int64], recipe: Recipe) -> list[str]:
    """A line where a text gave fewer sequences [sequences, length] than the recipe asks for."""
    (found, length), asked = tokens.shape, recipe.calibration["sequences"]
    if found >= asked:
        return []
    return [f"calibration text: gives {found} sequences of {length} tokens; {asked} need {asked * length} tokens"]


def given(step: PassStep) -> dict[str, Figure]:
    """A step's settings that have a value."""
    return {key: value for key, value in step.settings.items() if value is not None}


def _run_prune(work: Work, step: PassStep) -> PassOutcome:
    from edgepack.quant.passes.prune.layers import drop_layers
    from edgepack.quant.passes.prune.masks import Pattern
    from edgepack.quant.passes.prune.weights import PruneSettings, comparison, prune_weights

    settings = step.settings
    if settings["method"] == "layers":
        return drop_layers(work.checkpoint, settings["layers"], work.pass_run())
    zeros, group = pattern_group(settings["pattern"])
    sparsity = zeros / group if group else settings["sparsity"]
    compare = comparison(work.checkpoint) if settings["compare"] == "auto" else settings["compare"]
    pattern = Pattern(sparsity, group, compare)
    chosen = PruneSettings(settings["method"], pattern, settings["allocation"])
    return prune_weights(work.checkpoint, chosen, work.pass_run())


def _run_awq(work: Work, step: PassStep) -> PassOutcome:
    from edgepack.quant.passes.awq.weights import AwqSettings, apply_awq

    return apply_awq(work.checkpoint, AwqSettings(**step.settings), work.pass_run())


def _run_gptq(work: Work, step: PassStep) -> PassOutcome:
    from edgepack.quant.passes.gptq import GptqSettings, apply_gptq

    return apply_gptq(work.checkpoint, GptqSettings(step.settings["damping"]), work.pass_run())


def _run_low_rank(work: Work, step: PassStep) -> PassOutcome:
    from edgepack.quant.passes.lowrank.weights import LowRankSettings, factorise

    settings = step.settings
    apart = settings["output"] == "adapter"
    chosen = LowRankSettings(settings["method"], settings["rank"], settings["variance"], apart)
    return factorise(work.checkpoint, chosen, work.pass_run(with_tokens=settings["method"] == "whitened"))


RUNNERS: dict[str, Callable[[Work, PassStep], PassOutcome]] = {
    "prune": _run_prune,
    "awq": _run_awq,
    "gptq": _run_gptq,
    "lowrank": _run_low_rank,
}
