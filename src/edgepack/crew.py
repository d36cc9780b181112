"""Work that several processes or machines may share: what a maker asks of them, whoever they are.

Every piece of work depends on its inputs alone, so that neither their number nor the order in which they finish, nor
one that died and was asked again, changes a byte. Who they are and how they are reached is `pipeline.cluster`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

Piece = TypeVar("Piece")
Result = TypeVar("Result")


class Stage(Protocol):
    """One link of a relay, which lives on a worker: it takes one part after the other and keeps sums of them."""

    def step(self, *arrays: Any) -> Any:
        """The next part, in order: arrays in, an array out."""
        ...

    def finish(self) -> Any:
        """What was kept, when every part went through; nothing is asked of the stage after that."""
        ...


class Leg(Protocol):
    """What the asker knows of a relay: where a stage's parts come from and where they go."""

    @property
    def steps(self) -> int:
        """Parts that go through every stage."""
        ...

    def feed(self, stage: int, step: int) -> tuple[Any, ...]:
        """The arrays of a part; asked when the stage before has delivered it, again after a worker was lost."""
        ...

    def took(self, stage: int, step: int, output: Any) -> None:
        """A part came out of a stage; the same, with the same bytes, again after a worker was lost."""
        ...

    def finished(self, stage: int, result: Any) -> None:
        """A stage is done; in the order of the stages."""
        ...


class Crew(Protocol):
    """Workers that a maker may ask."""

    def share(self, context: object) -> object:
        """Hand a value to every worker once; gives what stands for it in `map` and `relay`."""
        ...

    def map(
        self,
        work: Callable[[Any, Piece], Result],
        context: object,
        pieces: Iterable[Piece],
        *,
        need: Callable[[Piece], int],
        halves: Callable[[Piece], Sequence[Piece]] = ...,
        with_torch: bool = False,
    ) -> Iterator[Result]:
        """`work(context, piece)` of every piece, in the pieces' order.

        Args:
            work: a function of a module: it is sent by name.
            context: what `share` gave.
            pieces: taken as they are needed.
            need: bytes of memory that a piece takes on a worker, without its share of the process.
            halves: a piece in smaller ones, in order, for a worker whose memory was too small; itself where it cannot
                be cut. Each has a result of its own.
            with_torch: whether the work computes with torch, whose factorisations depend on the number of threads:
                workers then take as many as this process has.

        Raises:
            EdgepackError: what the work raises, where its result would have come.
            ResourceError: workers died over one piece again and again.
        """
        ...

    def relay(
        self, opens: Callable[[Any, int], Stage], context: object, stages: Sequence[int], leg: Leg, *, need: int
    ) -> Iterator[int]:
        """Take every part through every stage; a stage works on one while the next works on the part before.

        Gives the number of every stage when it is done, in order; the work goes on while the next is asked for.

        Args:
            opens: makes a stage on a worker, of the context and the stage's number; sent by name.
            context: what `share` gave.
            stages: their numbers, in order.
            leg: where parts come from and go to.
            need: bytes of memory that a stage takes.

        Raises:
            EdgepackError: what a stage raises.
            ResourceError: workers died over one stage again and again.
        """
        ...
