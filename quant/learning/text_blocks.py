"""What a model learns from: blocks of tokens of one length in a file, made of text that may be longer than memory.

Examples with labels of their own are the caller's (any torch dataset of `input_ids` and `labels`, see `examples`).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from edgepack.errors import CalibrationError, UsageError
from edgepack.files.output import atomic_output

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

_TOKENS, _ABOUT = "tokens.bin", "blocks.json"
PIECE = 1 << 20  # characters that are tokenised at once


class TokenBlocks(Dataset):  # type: ignore[misc]  # torch is not followed by mypy
    """Blocks of tokens [count, length]: each is an example whose labels are its own tokens.

    Args:
        tokens: integers [rows, length]; a memory map stays one.
        rows: which of them are the blocks, in order; None for all.
    """

    def __init__(self, tokens: NDArray[Any], rows: NDArray[np.int64] | None = None) -> None:
        if tokens.ndim != 2 or not len(tokens) or tokens.shape[1] < 2:
            raise CalibrationError(f"learning: expected blocks of at least 2 tokens, got an array {tokens.shape}")
        self.tokens = tokens
        self.rows = np.arange(len(tokens)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = torch.from_numpy(np.array(self.tokens[self.rows[index]], dtype=np.int64))
        return {"input_ids": tokens, "labels": tokens}

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each block: int64 [count]."""
        return np.full(len(self), self.length, np.int64)

    @property
    def length(self) -> int:
        """Tokens of a block."""
        return int(self.tokens.shape[1])

    def split(self, share: float, most: int = 32) -> tuple[TokenBlocks, TokenBlocks]:
        """(blocks to learn from, blocks held out): `share` of them, evenly spread, at least 1 and at most `most`.

        Raises:
            CalibrationError: there is only one block.
        """
        count = len(self)
        if count < 2:
            raise CalibrationError("learning: expected text for at least 2 blocks, one of them held out, got 1")
        wanted = min(most, max(1, round(share * count)), count - 1)
        held = np.unique(np.linspace(0, count - 1, wanted + 2).round()[1:-1].astype(np.int64))
        learnt = np.setdiff1d(np.arange(count), held)
        return TokenBlocks(self.tokens, self.rows[learnt]), TokenBlocks(self.tokens, self.rows[held])


def text_pieces(path: Path, characters: int = PIECE) -> Iterator[str]:
    """The text of a UTF-8 file in pieces of about `characters`, each ending with a line where lines are shorter.

    Raises:
        UsageError: absent, or not UTF-8.
    """
    try:
        with path.open(encoding="utf-8") as stream:
            while piece := stream.read(characters):
                yield piece + stream.readline(characters)
    except OSError as error:
        raise UsageError(f"'{path}': {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: expected UTF-8 text, a byte is {error.object[error.start]:#04x}") from None


def write_blocks(pieces: Iterable[str], tokenizer: Any, length: int, folder: Path) -> TokenBlocks:
    """Tokenise text piece by piece into a file of blocks; what an earlier call finished there is taken up.

    Args:
        pieces: the text; no more than one piece is held at a time.
        tokenizer: transformers' tokenizer of the model; its begin-of-text token heads each block where it adds one.
        length: tokens of a block, that token included.
        folder: made when needed; it must outlive the blocks.

    Raises:
        CalibrationError: not enough text for one block.
    """
    known = _opened(folder, length)
    if known is not None:
        return known
    folder.mkdir(parents=True, exist_ok=True)
    marked = tokenizer("a", verbose=False)["input_ids"]
    begin = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None and marked[:1] == [
        tokenizer.bos_token_id] else []  # fmt: skip
    body, count, left = length - len(begin), 0, np.empty(0, np.int32)
    partial = folder / "partial.bin"
    with partial.open("wb") as stream:
        for piece in pieces:
            found = tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]
            left = np.concatenate([left, np.asarray(found, np.int32)])
            whole = len(left) // body
            rows = left[: whole * body].reshape(whole, body)
            left, count = left[whole * body :], count + whole
            stream.write(np.concatenate([np.full((whole, len(begin)), begin, np.int32), rows], 1).tobytes())
    if not count:
        partial.unlink()
        raise CalibrationError(f"learning: got {len(left)} tokens of text, one block needs {body}")
    partial.replace(folder / _TOKENS)
    with atomic_output(folder / _ABOUT) as about:
        about.write(json.dumps({"count": count, "length": length}).encode())
    opened = _opened(folder, length)
    assert opened is not None
    return opened


def _opened(folder: Path, length: int) -> TokenBlocks | None:
    """The blocks that lie in a folder; None for none, or of another length."""
    try:
        about = json.loads((folder / _ABOUT).read_text())
        if about["length"] != length or (folder / _TOKENS).stat().st_size != 4 * length * about["count"]:
            return None
        return TokenBlocks(np.memmap(folder / _TOKENS, np.int32, "r", shape=(about["count"], length)))
    except (OSError, ValueError, KeyError, TypeError):
        return None
