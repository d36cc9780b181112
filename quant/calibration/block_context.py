"""What a stage of a relay over blocks is opened with: a value that is sent; it opens nothing itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgepack.model import Checkpoint


@dataclass(frozen=True)
class BlockContext:
    """What every stage is opened with.

    Attributes:
        checkpoint: the model.
        device: a torch device.
        tokens: [sequences, length]: of their shape masks and positions are made.
        batch: sequences at a time.
        one_by_one: whether experts are run one by one, so that each can be watched.
    """

    checkpoint: Checkpoint
    device: str
    tokens: NDArray[np.int64]
    batch: int
    one_by_one: bool = True
