"""Pieces of work on many workers, their results in order: what was lost is asked for again, what was too large is cut.

It knows neither the cluster (`backend`) nor what the work is.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgepack.errors import ResourceError
from edgepack.pipeline.cluster.backend import Answer, WorkerLostError, WorkerMemoryError
from edgepack.quantities import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

    from edgepack.pipeline.cluster.backend import Backend

TRIES = 8  # workers that may die over one piece: chance takes a few, a piece that kills them all never ends
_WAIT_SECONDS = 5.0


@dataclass
class _Item:
    """A piece under way."""

    piece: Any
    need: int
    losses: int = 0
    ticket: Hashable | None = None
    answer: Answer | None = None


@dataclass
class Ordered:
    """One run over pieces.

    Attributes:
        backend: does the work.
        work: of a context and a piece.
        context: what `Backend.share` gave.
        need: bytes of a piece.
        halves: cuts a piece.
        threads: processors of a piece.
        most: pieces under way or waiting to be taken.
        told: of every answer.
        lost: told why work is done again.
    """

    backend: Backend
    work: Callable[[Any, Any], Any]
    context: object
    need: Callable[[Any], int]
    halves: Callable[[Any], Sequence[Any]]
    threads: int
    most: int
    told: Callable[[Answer], object]
    lost: Callable[[str], object]
    _window: deque[_Item] = field(default_factory=deque)

    def run(self, pieces: Iterator[Any]) -> Iterator[Any]:
        """Values in the pieces' order; raises as `edgepack.crew.Crew.map`."""
        try:
            while self._fill(pieces):
                while self._window[0].answer is None:
                    self._collect()
                answer = self._window.popleft().answer
                assert answer is not None
                if answer.error is not None:
                    raise answer.error
                yield answer.value
        finally:
            self.backend.cancel([item.ticket for item in self._window if item.ticket is not None])

    def _fill(self, pieces: Iterator[Any]) -> bool:
        """Ask for as many pieces as may be under way; whether there is one."""
        while len(self._window) < self.most:
            try:
                piece = next(pieces)
            except StopIteration:
                break
            self._window.append(self._asked(_Item(piece, self.need(piece))))
        return bool(self._window)

    def _asked(self, item: _Item) -> _Item:
        """The item, asked for; raises ResourceError where no node could ever do it."""
        room = self.backend.size().largest_memory
        if item.need > room:
            raise ResourceError(
                f"cluster: a piece of work needs {format_size(item.need)} of memory, the largest node gives"
                f" {format_size(room)}"
            )
        item.ticket = self.backend.submit(self.work, self.context, item.piece, item.need, self.threads)
        return item

    def _collect(self) -> None:
        """Take the answers that are there, in whichever order they came."""
        waiting = {item.ticket: item for item in self._window if item.ticket is not None}
        for ticket in self.backend.wait(list(waiting), _WAIT_SECONDS):
            item = waiting[ticket]
            item.ticket = None
            try:
                item.answer = self.backend.take(ticket)
                self.told(item.answer)
            except WorkerMemoryError:
                self._again_smaller(item)
            except WorkerLostError as error:
                self._again(item, str(error))

    def _again(self, item: _Item, why: str) -> None:
        item.losses += 1
        if item.losses >= TRIES:
            raise ResourceError(f"cluster: {TRIES} workers died over one piece of work, the last: {why}")
        self.lost(why)
        self._asked(item)

    def _again_smaller(self, item: _Item) -> None:
        """Halves in the piece's place; what cannot be cut gets twice the memory to itself."""
        parts = list(self.halves(item.piece))
        if len(parts) == 1:
            item.need = min(max(2 * item.need, 1 << 28), self.backend.size().largest_memory)
            self._again(item, "memory was short")
            return
        self.lost(f"memory was short: a piece of work was cut into {len(parts)}")
        place = next(number for number, other in enumerate(self._window) if other is item)
        del self._window[place]
        for part in reversed(parts):
            self._window.insert(place, self._asked(_Item(part, self.need(part), item.losses)))
