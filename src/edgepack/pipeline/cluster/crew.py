"""A cluster's workers as a crew: pieces by `ordered`, relays by `relay`, over any backend."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from edgepack.errors import UsageError
from edgepack.pipeline.cluster.ordered import Ordered
from edgepack.pipeline.cluster.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from edgepack.crew import Leg
    from edgepack.pipeline.cluster.backend import Backend
    from edgepack.pipeline.cluster.board import Board

_AHEAD = 2  # pieces for every processor: one is worked on, one waits or is taken


def whole(piece: Any) -> Sequence[Any]:
    """A piece that cannot be cut."""
    return [piece]


class ClusterCrew:
    """As `edgepack.crew.Crew`.

    Args:
        backend: does the work.
        board: told of every answer.
    """

    def __init__(self, backend: Backend, board: Board) -> None:
        self.backend, self.board = backend, board

    def share(self, context: object) -> object:
        """As `Crew.share`."""
        return self.backend.share(context)

    def map(
        self,
        work: Callable[[Any, Any], Any],
        context: object,
        pieces: Iterable[Any],
        *,
        need: Callable[[Any], int],
        halves: Callable[[Any], Sequence[Any]] = whole,
        with_torch: bool = False,
    ) -> Iterator[Any]:
        """As `Crew.map`."""
        threads = self._threads(with_torch=with_torch)
        most = max(2, _AHEAD * self.backend.size().processors // threads)
        run = Ordered(
            self.backend, work, context, need, halves, threads, most, self.board.answer, self.board.lost
        )  # fmt: skip
        return run.run(iter(pieces))

    def relay(
        self, opens: Callable[[Any, int], Any], context: object, stages: Sequence[int], leg: Leg, *, need: int
    ) -> Iterator[int]:
        """As `Crew.relay`."""
        threads = self._threads(with_torch=True)
        runners = max(1, min(len(stages), self.backend.size().processors // threads))
        relay = Relay(
            self.backend, opens, context, leg, runners, need, threads, self.board.answer, self.board.lost
        )  # fmt: skip
        return relay.run(stages)

    def _threads(self, *, with_torch: bool) -> int:
        """Processors of a piece: as many as torch has threads here, since its factorisations depend on that.

        Raises:
            UsageError: no node has as many.
        """
        torch = sys.modules.get("torch")
        threads = torch.get_num_threads() if with_torch and torch is not None else 1
        if threads > (room := self.backend.size().largest_processors):
            raise UsageError(
                f"--cluster: torch computes with {threads} threads here, on which last bits depend, and nodes have at"
                f" most {room} processors: set OMP_NUM_THREADS to that or less, and compare with runs that do"
            )
        return int(threads)
