"""A cluster in this process that answers in any order and loses what it likes: everything goes through pickle."""

from __future__ import annotations

import copy
import pickle
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgepack.errors import NumericError
from edgepack.pipeline.cluster.backend import Answer, Size, WorkerLostError, WorkerMemoryError
from edgepack.pipeline.cluster.worker import Bench, answered

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence


@dataclass
class ShakyBackend:
    """As `edgepack.pipeline.cluster.backend.Backend`.

    Attributes:
        workers: processors.
        seed: of the order of answers and of losses.
        losses: share of answers that are lost, with their worker.
        shortages: share of pieces whose worker is ended for memory.
    """

    workers: int = 2
    seed: int = 0
    losses: float = 0.0
    shortages: float = 0.0
    memory: int = 1 << 40
    asked: int = 0
    lost: int = 0
    most_waiting: int = 0
    _waiting: dict[int, Callable[[], Answer]] = field(default_factory=dict)
    _answers: dict[int, Any] = field(default_factory=dict)
    _queues: dict[int, list[int]] = field(default_factory=dict)
    _contexts: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def size(self) -> Size:
        return Size(self.workers, 64, self.memory, self.workers)

    def share(self, context: object) -> object:
        key = len(self._contexts)
        self._contexts[key] = pickle.loads(pickle.dumps(context))
        return key

    def _ticket(self, work: Callable[[], Answer]) -> int:
        self.asked += 1
        self._waiting[self.asked] = work
        self.most_waiting = max(self.most_waiting, len(self._waiting) + len(self._answers))
        return self.asked

    def submit(
        self, work: Callable[[Any, Any], Any], context: object, piece: object, need: int, threads: int
    ) -> Hashable:
        raw = pickle.dumps((work, piece))
        shared = None if context is None else self._contexts[context]  # type: ignore[index]

        def run() -> Answer:
            does, sent = pickle.loads(raw)
            if self.random.random() < self.shortages:
                raise WorkerMemoryError("memory was short")
            answer = answered(lambda: does(shared, sent), threads)
            return pickle.loads(pickle.dumps(answer))

        return self._ticket(run)

    def wait(self, tickets: Sequence[Hashable], seconds: float) -> Sequence[Hashable]:
        chosen: Any = self.random.choice(list(tickets))
        queue = next((queue for queue in self._queues.values() if chosen in queue), [chosen])
        for ticket in queue[: queue.index(chosen) + 1]:  # a bench answers in order
            self._run(ticket)
        del queue[: queue.index(chosen) + 1]
        return [ticket for ticket in tickets if ticket in self._answers]

    def _run(self, ticket: Any) -> None:
        work = self._waiting.pop(ticket)
        try:
            answer = work()
            if self.random.random() < self.losses:
                raise WorkerLostError("killed")
            self._answers[ticket] = answer
        except WorkerLostError as error:
            self.lost += 1
            self._answers[ticket] = error

    def take(self, ticket: Any) -> Answer:
        found = self._answers.pop(ticket)
        if isinstance(found, WorkerLostError):
            raise found
        return found

    def cancel(self, tickets: Sequence[Hashable]) -> None:
        for ticket in tickets:
            self._waiting.pop(ticket, None)  # type: ignore[call-overload]

    def bench(self, need: int, threads: int) -> object:
        bench = Bench()
        self._queues[id(bench)] = []
        return bench

    def call(self, bench: Any, name: str, *arguments: Any) -> Hashable:
        if name == "open":
            opens, context, number, threads = arguments
            arguments = (opens, copy.deepcopy(self._contexts[context]), number, threads)  # a process of its own
        else:
            arguments = pickle.loads(pickle.dumps(arguments))

        def run() -> Answer:
            if id(bench) not in self._queues:
                raise WorkerLostError("its bench is gone")
            return pickle.loads(pickle.dumps(getattr(bench, name)(*arguments)))

        ticket = self._ticket(run)
        self._queues[id(bench)].append(ticket)
        return ticket

    def leave(self, bench: Any) -> None:
        for ticket in self._queues.pop(id(bench), []):
            self._waiting.pop(ticket, None)
        bench.close()


def squared(context: int, piece: int) -> int:
    """Work for tests of order."""
    if piece == context:
        raise NumericError(f"piece {piece} is not finite")
    return piece * piece


class Adding:
    """A stage that adds its number to every part, and keeps the parts that it saw."""

    def __init__(self, number: int) -> None:
        self._number, self._seen = number, list[Any]()

    def step(self, part: Any) -> Any:
        self._seen.append(part)
        return part + self._number

    def finish(self) -> list[Any]:
        return self._seen

    def close(self) -> None:
        return


def adding(_context: None, number: int) -> Adding:
    """Opens one."""
    return Adding(number)
