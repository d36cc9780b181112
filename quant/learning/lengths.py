"""How long examples are, and an order of them whose batches hold examples of like length.

A batch is as long as its longest example: what the others lack is computed and thrown away. Filling them up is
`trainer`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Sampler, Subset

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray


_STRETCH = 50  # batches that are sorted together: transformers' most: every border has a batch of both


def lengths_of(examples: Any) -> NDArray[np.int64]:
    """Tokens of each example of a dataset: int64 [examples].

    A dataset that knows says so by an attribute `lengths`; any other is read once.
    """
    known: NDArray[np.int64] | None = getattr(examples, "lengths", None)
    if known is not None:
        return known
    if isinstance(examples, Subset):
        return lengths_of(examples.dataset)[np.asarray(examples.indices, np.int64)]
    return np.array([len(examples[index]["input_ids"]) for index in range(len(examples))], np.int64)


def heaviest(examples: Any) -> Mapping[str, torch.Tensor]:
    """An example that costs what one of any batch may, for the plan of memory: the longest.

    A dataset of several kinds gives one that costs what all of them do, by an attribute `heaviest`.
    """
    known: Mapping[str, torch.Tensor] | None = getattr(examples, "heaviest", None)
    if known is not None:
        return known
    found: Mapping[str, torch.Tensor] = examples[int(lengths_of(examples).argmax())]
    return found


class LikeLengths(Sampler):  # type: ignore[misc]  # torch is not followed by mypy
    """Batches of examples of like length, in an order that has nothing to do with length.

    Which examples go together is transformers' `get_length_grouped_indices`: a random order is cut into some stretches,
    each is sorted. Its own sampler hands them out from long to short and draws from the global generator, which a run
    that goes on finds in another state; here batches are shuffled, and seed and epoch decide everything.

    Args:
        lengths: tokens of each example.
        batch: examples of a step; their number is a multiple of it.
        seed: of the order.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self._lengths, self._batch, self._seed, self._epoch = list(lengths), batch, seed, 0

    def __len__(self) -> int:
        return len(self._lengths)

    def set_epoch(self, epoch: int) -> None:
        """As accelerate calls it before each epoch, that of a run that goes on included."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        from transformers.trainer_pt_utils import get_length_grouped_indices

        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        grouped = get_length_grouped_indices(self._lengths, self._batch, _STRETCH, generator)
        batches = torch.tensor(grouped).view(-1, self._batch)
        order: list[int] = batches[torch.randperm(len(batches), generator=generator)].flatten().tolist()
        return iter(order)
