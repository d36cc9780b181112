"""The sequences of a text that a tuning learns from and is judged by.

Tokenizing is `quant.calibration.text`'s, which of them are held out `tune`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.quant.calibration.text import sample_note, sequence_length, split_tokens, tokenize

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgepack.model import Checkpoint

DEFAULT_MINUTES = 10.0
DEFAULT_CTX = 256
DEFAULT_SEQUENCES = 512


def tuning_tokens(
    checkpoint: Checkpoint, text: str, ctx: int = DEFAULT_CTX, sequences: int = DEFAULT_SEQUENCES
) -> tuple[NDArray[np.int64], str]:
    """Pieces of a text, int64 [sequences, length], and a line that says where they are not all of it.

    Args:
        checkpoint: its folder holds the tokenizer.
        text: any text.
        ctx: tokens of a sequence; no more than the model knows.
        sequences: at most this many, spread evenly.

    Raises:
        CalibrationError: the text is too short for one sequence.
        TokenizerError: the tokenizer cannot be loaded.
    """
    tokens, begin = tokenize(checkpoint.path, text)
    length = sequence_length(checkpoint, ctx)
    every = split_tokens(tokens, begin, length, None)
    chosen = split_tokens(tokens, begin, length, sequences)
    return chosen, sample_note(len(every), len(chosen), length)
