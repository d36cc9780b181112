"""Keeps torch from splitting small operations over cores while a codec searches. Publisher only."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def one_thread() -> Iterator[int]:
    """Torch works with one thread inside the block; gives how many it had, and restores them.

    Operations of some microseconds lose more to barriers than they gain, most of all on a busy machine.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)
