"""Token sequences to calibrate on: from a text, or sampled from the model itself.

What is measured over them is left to `collect`.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import CalibrationError, TokenizerError
from edgepack.quant.calibration.stepwise import step

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from edgepack.model import Checkpoint

DEFAULT_LENGTH = 512  # llama.cpp's own chunk for an importance matrix
DEFAULT_SEQUENCES = 64
LARGE = 10**9  # parameters from which a model that samples is held in two bytes a weight


def sequence_length(checkpoint: Checkpoint, wanted: int = DEFAULT_LENGTH) -> int:
    """`wanted`, or the model's longest context where that is shorter."""
    config = checkpoint.config
    limits = [config[key] for key in ("max_position_embeddings", "n_positions", "n_ctx") if config.get(key)]
    return min([wanted, *map(int, limits)])


def text_sequences(
    checkpoint: Checkpoint, text: str, *, length: int | None = None, sequences: int | None = DEFAULT_SEQUENCES
) -> NDArray[np.int64]:
    """Equal pieces of `text` as the model's tokens, spread evenly over it.

    Each piece begins with the begin-of-text token where the tokenizer adds one, as llama.cpp's does.

    Args:
        checkpoint: its folder holds the tokenizer.
        text: any text.
        length: tokens a piece; by default 512, or the model's context where that is shorter.
        sequences: how many pieces; None for as many as the text gives.

    Returns:
        [sequences, length].

    Raises:
        CalibrationError: the text is too short for one piece.
        TokenizerError: the folder's tokenizer cannot be loaded.
    """
    length = sequence_length(checkpoint) if length is None else length
    tokens, begin = tokenize(checkpoint.path, text)
    return split_tokens(tokens, begin, length, sequences)


def split_tokens(tokens: NDArray[np.int64], begin: int | None, length: int, sequences: int | None) -> NDArray[np.int64]:
    """Equal pieces of a token stream, spread evenly over it.

    Args:
        tokens: the stream, without a begin-of-text token.
        begin: put at the head of each piece, or None.
        length: tokens a piece, `begin` included.
        sequences: how many pieces; None for as many as there are.

    Returns:
        [sequences, length]; fewer pieces than asked for when the stream is shorter.
    """
    body = length - (begin is not None)
    available = len(tokens) // body
    if available == 0:
        raise CalibrationError(
            f"calibration text: got {len(tokens)} tokens, needs at least {body} for one sequence of {length} and "
            f"{DEFAULT_SEQUENCES * body} for the default of {DEFAULT_SEQUENCES} sequences"
        )
    count = available if sequences is None else min(sequences, available)
    pieces = tokens[: available * body].reshape(available, body)[evenly_spread(available, count)]
    if begin is None:
        return np.ascontiguousarray(pieces)
    return np.concatenate([np.full((count, 1), begin, dtype=np.int64), pieces], axis=1)


def evenly_spread(available: int, wanted: int) -> NDArray[np.int64]:
    """Which of `available` pieces a sample of `wanted` takes: int64, ascending, the first and the last among them.

    Args:
        available: at least 1.
        wanted: at least 1; all pieces where there are no more.
    """
    picks: NDArray[np.int64] = np.linspace(0, available - 1, min(wanted, available)).round().astype(np.int64)
    return picks


def sample_note(available: int, taken: int, length: int) -> str:
    """A line that says which part of a text was used; empty where it was all of it."""
    if taken >= available:
        return ""
    return (
        f"calibration text: {taken} of its {available} pieces of {length} tokens, spread evenly over it "
        "(--sequences takes more)"
    )


def tokenize(path: Path, text: str) -> tuple[NDArray[np.int64], int | None]:
    """Tokens of `text` by the tokenizer of a checkpoint's folder, and its begin-of-text token if it adds one.

    Raises:
        TokenizerError: there is no tokenizer, or it cannot be loaded.
    """
    tokenizer = load_tokenizer(path)
    tokens = np.asarray(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int64)
    marked = tokenizer("a", verbose=False)["input_ids"]
    begin = tokenizer.bos_token_id
    return tokens, begin if begin is not None and marked[:1] == [begin] else None


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of a checkpoint's folder; raises TokenizerError where there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise TokenizerError(f"{path}: its tokenizer cannot be loaded: {str(error).splitlines()[0]}") from error


def _sampling_type(checkpoint: Checkpoint) -> torch.dtype:
    """float32; of a large model the type that nearly all of its weights have in the source, if it has two bytes."""
    import torch

    weights: dict[str, int] = {}
    for spec in checkpoint.tensors.specs.values():
        weights[spec.dtype] = weights.get(spec.dtype, 0) + prod(spec.shape)
    total, most = sum(weights.values()), max(weights, key=lambda kind: weights[kind])
    halves = {"bf16": torch.bfloat16, "f16": torch.float16}
    return halves.get(most, torch.float32) if total >= LARGE and weights[most] > 0.9 * total else torch.float32


def own_samples(
    checkpoint: Checkpoint,
    *,
    length: int | None = None,
    sequences: int = DEFAULT_SEQUENCES,
    device: str = "cpu",
    seed: int = 0,
) -> NDArray[np.int64]:
    """Sequences that the model itself writes at temperature 1: calibration with nothing at hand.

    Sampling needs the whole model in memory, unlike everything else here: a model of 10^9 parameters or more in the
    source's own type of two bytes, where it has one.

    Args:
        checkpoint: a causal language model.
        length: tokens a sequence; by default 512, or the model's context where that is shorter.
        sequences: how many.
        device: a torch device.
        seed: of the sampling; the same seed gives the same tokens on the same device.

    Returns:
        [sequences, length]; each begins with the begin-of-text token, or a random token where there is none.
    """
    import torch

    from edgepack.quant.calibration.blocks import whole_model

    length = sequence_length(checkpoint) if length is None else length
    generator = torch.Generator().manual_seed(seed)
    model = whole_model(checkpoint, device, _sampling_type(checkpoint))
    vocabulary, begin = int(model.config.vocab_size), checkpoint.config.get("bos_token_id")
    if isinstance(begin, int):
        tokens = torch.full((sequences, 1), begin)
    else:
        tokens = torch.randint(vocabulary, (sequences, 1), generator=generator)
    cache, last = None, tokens
    while tokens.shape[1] < length:
        logits, cache = step(model, last.to(device), cache)
        probabilities = logits[:, -1].float().softmax(-1).cpu()
        last = torch.multinomial(probabilities, 1, generator=generator)
        tokens = torch.cat([tokens, last], dim=1)
    result: NDArray[np.int64] = tokens.numpy()
    return result
