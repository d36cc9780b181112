"""What a teacher says of every example, kept on disk so that it is not in memory while its student learns.

Kept are the most probable tokens at each position and the rest as one (as in `quant.tuning.targets`), and on request
what one layer gives. Half precision. How a student is measured against that is told in `objectives`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from edgepack.errors import NumericError
from edgepack.files.arrays import new_array
from edgepack.files.output import atomic_output
from edgepack.progress import silent
from edgepack.quant.learning.layers import LayerProbe
from edgepack.quant.learning.lengths import lengths_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from edgepack.progress import Progress

TOKENS, LOGARITHMS = "top_tokens", "top_logarithms"  # keys of an example with answers; other keys are `LayerProbe`'s
_ABOUT = "answers.json"
_KEEP_EVERY = 32  # examples between two notes of how many are done


@dataclass(frozen=True)
class Asked:
    """What is kept of a teacher's answers.

    Attributes:
        top: most probable tokens at each position; fewer where the vocabulary is smaller.
        relations: the block, from 0, whose queries, keys and values are kept; None for none.
        hidden: blocks whose output is kept.
    """

    top: int = 64
    relations: int | None = None
    hidden: tuple[int, ...] = ()


class AnsweredExamples(Dataset):  # type: ignore[misc]  # torch is not followed by mypy
    """Examples with what a teacher says of each: the base's own keys and those of `arrays`.

    Args:
        base: any dataset of examples of one length.
        arrays: key → [examples, length, …].
        rows: which of the arrays' rows belong to the base's examples, in order; None for all.
    """

    def __init__(self, base: Any, arrays: Mapping[str, NDArray[Any]], rows: NDArray[np.int64] | None = None) -> None:
        self.base, self.arrays = base, arrays
        self.rows = np.arange(len(base)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = int(self.rows[index])
        found = {key: torch.from_numpy(np.array(array[row])) for key, array in self.arrays.items()}
        return {**self.base[row], **found}

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example: int64 [examples]."""
        return lengths_of(self.base)[self.rows]

    def part(self, rows: NDArray[np.int64]) -> AnsweredExamples:
        """Some of the examples, by their place among these."""
        return AnsweredExamples(self.base, self.arrays, self.rows[rows])


def answer_examples(
    teacher: nn.Module, examples: Any, asked: Asked, folder: Path, progress: Progress = silent
) -> AnsweredExamples:
    """Ask a teacher about every example, or take up what an earlier call of the same left in the folder.

    Args:
        teacher: gives logits; on the device that it lies on.
        examples: a dataset of `input_ids` [length], all of one length.
        asked: what is kept.
        folder: the run's own; it must outlive the examples.
        progress: told of each example.

    Raises:
        NumericError: the teacher gives NaN or infinity.
        UnsupportedModelError: as `LayerProbe`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device = next(teacher.parameters()).device
    about = {"asked": repr(asked), "count": len(examples)}
    done = _done(folder, about)
    arrays: dict[str, NDArray[Any]] = {}
    teacher.eval()
    with (
        torch.no_grad(),
        LayerProbe(teacher, asked.relations, asked.hidden) as probe,
        progress("Asking the original", len(examples) - done, " sequences") as advance,
    ):
        for index in range(done, len(examples)):
            tokens = examples[index]["input_ids"].to(device)
            logits = teacher(input_ids=tokens[None], use_cache=False).logits[0].float()
            found = {**_kept(logits, asked.top, index), **{key: each[0] for key, each in probe.take().items()}}
            for key, value in found.items():
                if key not in arrays:
                    arrays[key] = _array(folder, key, (len(examples), *value.shape), value, new=index == 0)
                arrays[key][index] = _half(value)
            if (index + 1) % _KEEP_EVERY == 0:
                _note(folder, about, arrays, index + 1)
            advance(1)
    _note(folder, about, arrays, len(examples))
    return AnsweredExamples(examples, {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")})


def _kept(logits: torch.Tensor, top: int, index: int) -> dict[str, torch.Tensor]:
    if not torch.isfinite(logits).all():
        raise NumericError(f"learning: the original's logits are not finite in sequence {index} of the text")
    best, places = logits.log_softmax(-1).topk(min(top, logits.shape[-1]), -1)
    return {TOKENS: places.int(), LOGARITHMS: best}


def _half(value: torch.Tensor) -> NDArray[Any]:
    """On the CPU, floats in half precision."""
    array: NDArray[Any] = (value.half() if value.is_floating_point() else value).cpu().numpy()
    return array


def _array(folder: Path, key: str, shape: tuple[int, ...], value: torch.Tensor, *, new: bool) -> NDArray[Any]:
    path = folder / f"{key}.npy"
    dtype = np.float16 if value.is_floating_point() else np.int32
    if new:
        return new_array(path, dtype, shape)
    return np.lib.format.open_memmap(path, "r+")


def _done(folder: Path, about: Mapping[str, Any]) -> int:
    """How many examples an earlier call of the same has finished."""
    try:
        known = json.loads((folder / _ABOUT).read_text())
        done = int(known.pop("done"))
    except (OSError, ValueError, KeyError):
        return 0
    return done if known == about else 0


def _note(folder: Path, about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], done: int) -> None:
    for array in arrays.values():
        if isinstance(array, np.memmap):
            array.flush()
    with atomic_output(folder / _ABOUT) as stream:
        stream.write(json.dumps({**about, "done": done}).encode())
