"""Text of what a model is to go on saying while it learns documents: given, or written by the model itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import CalibrationError
from edgepack.quant.calibration.text import own_samples

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.model import Checkpoint
    from edgepack.pipeline.adapting.settings import TeachSettings

SAMPLE_LENGTH = 192  # tokens of a text that the model writes itself


@dataclass(frozen=True)
class OtherText:
    """The other text of one run.

    Attributes:
        text: a UTF-8 file; None for what the model writes itself.
        checkpoint: the model.
        tokenizer: its tokenizer.
        length: tokens of an example.
        settings: how many pieces.
        folder: what the model wrote is kept there for a run that goes on.
        note: told what is done, a line at a time.
    """

    text: Path | None
    checkpoint: Checkpoint
    tokenizer: Any
    length: int
    settings: TeachSettings
    folder: Path
    note: Callable[[str], object]

    def pieces(self) -> tuple[NDArray[np.int64], list[NDArray[Any]]]:
        """Pieces to learn to keep [replay, length], and others to measure forgetting on.

        Raises:
            CalibrationError: the text is too short.
        """
        settings = self.settings
        wanted = settings.replay + settings.measured
        length = min(self.length, SAMPLE_LENGTH)
        tokens = self._written(wanted, length) if self.text is None else self._given(wanted, length)
        if len(tokens) <= settings.replay:
            count = len(tokens)
            raise CalibrationError(
                f"teach: expected other text for more than {settings.replay} pieces of {length} tokens, got {count}:"
                " give more, or a lower --replay"
            )
        order = np.random.default_rng(settings.seed).permutation(len(tokens))
        return tokens[np.sort(order[: settings.replay])], list(tokens[np.sort(order[settings.replay :])])

    def _written(self, wanted: int, length: int) -> NDArray[np.int64]:
        """What the model writes itself; kept for a run that goes on."""
        path = self.folder / "written.npy"
        if path.is_file():
            return np.asarray(np.load(path, allow_pickle=False), np.int64)
        self.note(f"teach: no other text was given: the model writes {wanted} pieces of it")
        found = own_samples(
            self.checkpoint, length=length, sequences=wanted, device=self.settings.device, seed=self.settings.seed
        )
        np.save(path, found)
        return found

    def _given(self, wanted: int, length: int) -> NDArray[np.int64]:
        from edgepack.quant.calibration.text import evenly_spread
        from edgepack.quant.learning.text_blocks import text_pieces, write_blocks

        assert self.text is not None
        blocks = write_blocks(text_pieces(self.text), self.tokenizer, length, self.folder / "other")
        return np.array(blocks.tokens[evenly_spread(len(blocks), wanted)], np.int64)
