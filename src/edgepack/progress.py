"""How long work tells how far it is; who listens (a terminal, a test, nobody) is not its business."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager


class Progress(Protocol):
    """Opens one named stretch of work; the context's value is called with each amount done."""

    def __call__(self, label: str, total: int, unit: str = "B") -> AbstractContextManager[Callable[[int], object]]:
        """Start a stretch of `total` units ("B" for bytes, or a noun such as " tokens")."""
        ...


@contextmanager
def silent(label: str, total: int, unit: str = "B") -> Iterator[Callable[[int], object]]:
    """Progress that nobody watches."""
    yield lambda _amount: None
