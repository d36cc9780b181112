"""What the order of work needs of a cluster's engine, and how it tells what went wrong; no engine is named here.

The one that there is is `ray_backend`; tests have one of their own, that fails as they please.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from edgepack.errors import EdgepackError


class WorkerLostError(Exception):
    """A worker, its node, or what it had made is gone: the work has to be done again."""


class WorkerMemoryError(WorkerLostError):
    """A worker was ended because memory was short."""


@dataclass(frozen=True)
class Answer:
    """What a worker gave.

    Attributes:
        value: of the work; None where it failed.
        error: what the work raised, to be raised again.
        node: the name of the machine.
        seconds: of the work itself.
        peak: most memory that the worker's process ever held, in bytes.
    """

    value: Any
    error: EdgepackError | None = None
    node: str = ""
    seconds: float = 0.0
    peak: int = 0


@dataclass(frozen=True)
class Size:
    """What there is of a cluster.

    Attributes:
        processors: of all nodes.
        largest_processors: of the node that has most.
        largest_memory: likewise, bytes that work may take.
        nodes: how many.
    """

    processors: int
    largest_processors: int
    largest_memory: int
    nodes: int


class Backend(Protocol):
    """A cluster's engine. A ticket stands for work that was asked for."""

    def size(self) -> Size:
        """What there is now."""
        ...

    def share(self, context: object) -> object:
        """As `edgepack.crew.Crew.share`."""
        ...

    def submit(
        self, work: Callable[[Any, Any], Any], context: object, piece: object, need: int, threads: int
    ) -> Hashable:
        """Ask for `work(context, piece)` of any worker with `need` bytes and `threads` processors."""
        ...

    def wait(self, tickets: Sequence[Hashable], seconds: float) -> Sequence[Hashable]:
        """Those of the tickets that are done, as soon as there is one, or none after some seconds."""
        ...

    def take(self, ticket: Hashable) -> Answer:
        """The answer to a ticket that is done.

        Raises:
            WorkerMemoryError, WorkerLostError: there will be none.
        """
        ...

    def cancel(self, tickets: Sequence[Hashable]) -> None:
        """Nobody waits for these any more."""
        ...

    def bench(self, need: int, threads: int) -> object:
        """A worker that keeps what it is told between two calls."""
        ...

    def call(self, bench: object, name: str, *arguments: object) -> Hashable:
        """Ask a bench: `open`, `step` or `finish`."""
        ...

    def leave(self, bench: object) -> None:
        """A bench is not needed any more, or is broken."""
        ...
