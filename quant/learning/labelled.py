"""Examples with labels of their own, whole passages and answers, kept in two files whatever their number.

What is tokenised is the caller's.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset

from edgepack.errors import CalibrationError
from edgepack.files.output import atomic_output
from edgepack.quant.learning.objectives import IGNORED

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

Labelled = tuple["Sequence[int]", int]
"""Token ids, and how many of them come before what is learnt: they are read, not learnt."""

_TOKENS, _ABOUT = "examples.bin", "examples.json"


class LabelledExamples(Dataset):  # type: ignore[misc]  # torch is not followed by mypy
    """Examples of any length in one file of tokens.

    Args:
        tokens: int32 [all tokens], a memory map.
        ends: int64 [examples], where each one ends in it.
        read: int32 [examples], how many of its tokens are not learnt.
    """

    def __init__(self, tokens: NDArray[np.int32], ends: NDArray[np.int64], read: NDArray[np.int64]) -> None:
        self.tokens, self.ends, self.read = tokens, ends, read

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        start = 0 if index == 0 else int(self.ends[index - 1])
        ids = torch.from_numpy(np.array(self.tokens[start : int(self.ends[index])], dtype=np.int64))
        labels = ids.clone()
        labels[: int(self.read[index])] = IGNORED
        return {"input_ids": ids, "labels": labels}

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example: int64 [examples]."""
        return np.diff(self.ends, prepend=0)

    @property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return int(self.lengths.max())


def write_labelled(examples: Iterable[Labelled], folder: Path) -> LabelledExamples:
    """Write examples down one by one, or take up what an earlier call finished there.

    Args:
        examples: of at least 2 tokens, one of them learnt.
        folder: the run's own; it must outlive the examples.

    Raises:
        CalibrationError: there is none.
    """
    known = _opened(folder)
    if known is not None:
        return known
    folder.mkdir(parents=True, exist_ok=True)
    ends, read, at = [], [], 0
    with (folder / _TOKENS).open("wb") as stream:
        for ids, before in examples:
            stream.write(np.asarray(ids, np.int32).tobytes())
            at += len(ids)
            ends.append(at)
            read.append(before)
    if not ends:
        raise CalibrationError("learning: expected at least one example, got none")
    with atomic_output(folder / _ABOUT) as about:
        about.write(json.dumps({"ends": ends, "read": read}).encode())
    opened = _opened(folder)
    assert opened is not None
    return opened


def _opened(folder: Path) -> LabelledExamples | None:
    try:
        about = json.loads((folder / _ABOUT).read_text())
        ends, read = np.array(about["ends"], np.int64), np.array(about["read"], np.int64)
        if (folder / _TOKENS).stat().st_size != 4 * int(ends[-1]):
            return None
        return LabelledExamples(np.memmap(folder / _TOKENS, np.int32, "r"), ends, read)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
