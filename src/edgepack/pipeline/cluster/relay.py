"""A relay: every part goes through all stages in order, and each stage, on one worker, sees the parts in order.

So sums over parts are those of one machine, to the bit, and no sum travels but the finished ones. A stage whose worker
is lost begins again; what comes out of it again is what came out before. It knows neither cluster nor work.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgepack.errors import ResourceError
from edgepack.pipeline.cluster.backend import Answer, WorkerLostError
from edgepack.pipeline.cluster.ordered import TRIES

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

    from edgepack.crew import Leg
    from edgepack.pipeline.cluster.backend import Backend

_WAIT_SECONDS = 5.0
_AHEAD = 2  # calls that wait at a worker: the next part travels while one is worked on


@dataclass
class _Runner:
    """A stage on a worker.

    Attributes:
        stage: its number.
        bench: the worker.
        calls: under way, in order: ("open", -1), ("step", its number), ("finish", -1).
        next: the part to be sent next.
        came: parts that came out, this time or before.
        losses: workers that died over it.
        closing: whether the end was asked for.
    """

    stage: int
    bench: object
    calls: dict[Hashable, tuple[str, int]] = field(default_factory=dict)
    next: int = 0
    came: set[int] = field(default_factory=set)
    losses: int = 0
    closing: bool = False

    @property
    def out(self) -> int:
        """That many parts the next stage may take: without a gap, though answers may overtake each other."""
        count = len(self.came)
        return count if not self.came or max(self.came) == count - 1 else min(set(range(count)) - self.came)

    @property
    def is_opening(self) -> bool:
        """Whether nothing has begun yet."""
        return ("open", -1) in self.calls.values()


@dataclass
class Relay:
    """One relay.

    Attributes:
        backend: does the work.
        opens: makes a stage on a worker.
        context: what `Backend.share` gave.
        leg: where parts come from and go to.
        runners: stages at work at once.
        need: bytes of a stage.
        threads: processors of a stage.
        told: of every answer.
        lost: told why work is done again.
    """

    backend: Backend
    opens: Callable[[Any, int], Any]
    context: object
    leg: Leg
    runners: int
    need: int
    threads: int
    told: Callable[[Answer], object]
    lost: Callable[[str], object]
    _active: list[_Runner] = field(default_factory=list)
    _free: list[object] = field(default_factory=list)
    _done: dict[int, Any] = field(default_factory=dict)
    _waiting: deque[int] = field(default_factory=deque)

    def run(self, stages: Sequence[int]) -> Iterator[int]:
        """Numbers of stages as they are done; raises as `edgepack.crew.Crew.relay`."""
        self._waiting = deque(stages)
        reported = iter(stages)
        following = next(reported, None)
        try:
            self._start()
            while self._active:
                self._feed()
                self._collect()
                while following is not None and following in self._done:
                    self.leg.finished(following, self._done.pop(following))
                    yield following
                    following = next(reported, None)
                self._settle()
                self._start()
        finally:
            for runner in self._active:
                self.backend.cancel(list(runner.calls))
            for bench in [*self._free, *(runner.bench for runner in self._active)]:
                self.backend.leave(bench)

    def _start(self) -> None:
        """Give free workers the next stages; one needs what came out of the one before, so they start in order."""
        while self._waiting and len(self._active) < self.runners:
            bench = self._free.pop() if self._free else self.backend.bench(self.need, self.threads)
            self._active.append(self._opened(_Runner(self._waiting.popleft(), bench)))

    def _settle(self) -> None:
        """A worker that is free takes the place of one that has not come yet: after a loss it may never come."""
        for runner in self._active:
            if self._free and runner.is_opening:
                self.backend.leave(runner.bench)
                runner.bench = self._free.pop()
                self._opened(runner)

    def _opened(self, runner: _Runner) -> _Runner:
        ticket = self.backend.call(runner.bench, "open", self.opens, self.context, runner.stage, self.threads)
        runner.calls, runner.next, runner.closing = {ticket: ("open", -1)}, 0, False
        return runner

    def _feed(self) -> None:
        """Send every worker the next parts that are there."""
        before = self.leg.steps
        for runner in self._active:
            while len(runner.calls) < _AHEAD and runner.next < min(before, self.leg.steps):
                arrays = self.leg.feed(runner.stage, runner.next)
                ticket = self.backend.call(runner.bench, "step", *arrays)
                runner.calls[ticket] = ("step", runner.next)
                runner.next += 1
            if runner.next == self.leg.steps and not runner.closing and len(runner.calls) < _AHEAD:
                runner.calls[self.backend.call(runner.bench, "finish")] = ("finish", -1)
                runner.closing = True
            before = runner.out

    def _collect(self) -> None:
        owners = {ticket: runner for runner in self._active for ticket in runner.calls}
        for ticket in self.backend.wait(list(owners), _WAIT_SECONDS):
            runner = owners[ticket]
            if ticket in runner.calls:  # else its worker was lost a moment ago
                self._take(runner, ticket)

    def _take(self, runner: _Runner, ticket: Hashable) -> None:
        kind, step = runner.calls[ticket]
        try:
            answer = self.backend.take(ticket)
        except WorkerLostError as error:
            self._again(runner, str(error))
            return
        del runner.calls[ticket]
        self.told(answer)
        if answer.error is not None:
            raise answer.error
        if kind == "step":
            self.leg.took(runner.stage, step, answer.value)
            runner.came.add(step)
        elif kind == "finish":
            self._done[runner.stage] = answer.value
            self._active.remove(runner)
            self._free.append(runner.bench)

    def _again(self, runner: _Runner, why: str) -> None:
        """The stage from its beginning, on the worker of the last stage: that one waits, or nobody might go on."""
        runner.losses += 1
        if runner.losses >= TRIES:
            raise ResourceError(f"cluster: {TRIES} workers died over stage {runner.stage}, the last: {why}")
        self.lost(why)
        self.backend.leave(runner.bench)
        last = self._active[-1]
        if last is runner:
            runner.bench = self.backend.bench(self.need, self.threads)
        else:
            runner.bench, last.calls = last.bench, {}
            self._active.remove(last)
            self._waiting.appendleft(last.stage)
        self._opened(runner)
