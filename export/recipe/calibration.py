"""The tokens that a recipe's `[calibration]` asks for. What is measured over them is `quant.calibration`'s."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.text_file import read_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgepack.model import Checkpoint
    from edgepack.quant.passes.recipe import Recipe


def calibration_tokens(
    checkpoint: Checkpoint, recipe: Recipe, device: str = "cpu", learnt: int = 0
) -> NDArray[np.int64]:
    """The tokens [sequences, length] that a recipe's `[calibration]` asks for.

    Args:
        checkpoint: the model.
        recipe: says which text.
        device: a torch device, for a model that writes its own text.
        learnt: sequences that a pass which trains can make use of: of a text, as many are given if it has them.

    Raises:
        UsageError: the text cannot be read.
        CalibrationError: the text is too short.
    """
    from edgepack.quant.calibration.text import own_samples, text_sequences

    asked = recipe.calibration
    if asked["text"] is None:
        return own_samples(
            checkpoint, length=asked["length"], sequences=asked["sequences"], device=device, seed=asked["seed"]
        )
    text = read_text(Path(asked["text"]))
    return text_sequences(checkpoint, text, length=asked["length"], sequences=max(asked["sequences"], learnt))


def short_text_note(tokens: NDArray[np.int64], recipe: Recipe) -> list[str]:
    """A line where a text gave fewer sequences [sequences, length] than the recipe asks for."""
    (found, length), asked = tokens.shape, recipe.calibration["sequences"]
    if found >= asked:
        return []
    return [f"calibration text: gives {found} sequences of {length} tokens; {asked} need {asked * length} tokens"]
