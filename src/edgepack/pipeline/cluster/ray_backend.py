"""Ray, https://docs.ray.io, once it is connected (`ray_connection`): sends work and tells what was lost.

Which work, in which order, and what to do about losses is left to `ordered` and `relay`. Ray's own retries are off: a
piece that died is asked for again there, smaller where it must be.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgepack.errors import DependencyError, NetworkError, ResourceError
from edgepack.pipeline.cluster import worker
from edgepack.pipeline.cluster.backend import Answer, Size, WorkerLostError, WorkerMemoryError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

_BASE_BYTES = 300 << 20  # of a worker's process with numpy and torch, beside what a piece needs
_TAKE_SECONDS = 900.0  # for a result that is there to arrive: its node may go meanwhile
_SIZE_SECONDS = 2.0  # how long the number of nodes is believed


class RayBackend:
    """A cluster that is connected; as `backend.Backend`.

    Args:
        ray: the module.
    """

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._task = ray.remote(_perform)
        self._bench = ray.remote(_RemoteBench)
        self._sized = (-_SIZE_SECONDS, Size(0, 0, 0, 0))
        self._folder = str(Path.cwd())
        lost = ray.exceptions
        self._memory = (lost.OutOfMemoryError,)
        self._lost = (
            lost.WorkerCrashedError, lost.NodeDiedError, lost.ObjectLostError, lost.RayActorError,
            lost.TaskUnschedulableError, lost.ActorUnschedulableError,
        )  # fmt: skip

    def nodes(self) -> list[dict[str, Any]]:
        """Ray's own description of every node that is alive."""
        return [node for node in self._ray.nodes() if node["Alive"]]

    def size(self) -> Size:
        """As `Backend.size`."""
        when, known = self._sized
        if time.monotonic() - when >= _SIZE_SECONDS:
            able = [node["Resources"] for node in self.nodes() if node["Resources"].get("CPU", 0) >= 1]
            processors = [int(each["CPU"]) for each in able]
            memory = [int(each.get("memory", 0)) - _BASE_BYTES for each in able]
            known = Size(sum(processors), max(processors, default=0), max(memory, default=0), len(able))
            self._sized = time.monotonic(), known
        return known

    def share(self, context: object) -> object:
        """As `Backend.share`."""
        return [self._ray.put(context)]  # in a list: the worker fetches it, once

    def submit(
        self, work: Callable[[Any, Any], Any], context: object, piece: object, need: int, threads: int
    ) -> Hashable:
        """As `Backend.submit`."""
        task = self._task.options(
            num_cpus=threads, memory=need + _BASE_BYTES, max_retries=0, scheduling_strategy="SPREAD"
        )
        return cast("Hashable", task.remote(work, context, piece, threads, self._folder))

    def wait(self, tickets: Sequence[Hashable], seconds: float) -> Sequence[Hashable]:
        """As `Backend.wait`; raises ResourceError where no node is left."""
        done, _ = self._ray.wait(list(tickets), num_returns=1, timeout=seconds, fetch_local=False)
        if not done:
            self._sized = (-_SIZE_SECONDS, self._sized[1])
            if not self.size().processors:
                raise ResourceError("cluster: no node with a processor is left")
            return []
        more, _ = self._ray.wait(list(tickets), num_returns=len(tickets), timeout=0, fetch_local=False)
        return cast("Sequence[Hashable]", more or done)

    def take(self, ticket: Hashable) -> Answer:
        """As `Backend.take`."""
        try:
            return cast("Answer", self._ray.get(ticket, timeout=_TAKE_SECONDS))
        except self._memory as error:
            raise WorkerMemoryError(_reason(error)) from None
        except self._lost as error:
            raise WorkerLostError(_reason(error)) from None
        except self._ray.exceptions.GetTimeoutError:
            raise WorkerLostError(f"its result did not arrive within {_TAKE_SECONDS:.0f} seconds") from None
        except self._ray.exceptions.LocalRayletDiedError:  # nothing can be asked of anybody any more
            raise NetworkError(
                "cluster: the node of the cluster on this machine has ended: start it and run again with --resume"
            ) from None
        except self._ray.exceptions.OutOfDiskError as error:
            raise ResourceError(f"cluster: the disk of a node is full: {_reason(error)}") from None
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, MemoryError):
                raise WorkerMemoryError("memory was short") from None
            if isinstance(cause, (ModuleNotFoundError, AttributeError)):
                raise DependencyError(f"cluster: a node has another edgepack, or none: {cause}") from None
            raise

    def cancel(self, tickets: Sequence[Hashable]) -> None:
        """As `Backend.cancel`; a call of a bench ends with the bench."""
        for ticket in tickets:
            with suppress(ValueError, TypeError, RuntimeError, self._ray.exceptions.RayError):
                self._ray.cancel(ticket, force=False)

    def bench(self, need: int, threads: int) -> object:
        """As `Backend.bench`."""
        options = {"num_cpus": threads, "memory": need + _BASE_BYTES, "max_restarts": 0, "max_task_retries": 0}
        return self._bench.options(scheduling_strategy="SPREAD", **options).remote(self._folder)

    def call(self, bench: object, name: str, *arguments: object) -> Hashable:
        """As `Backend.call`."""
        return cast("Hashable", getattr(bench, name).remote(*arguments))

    def leave(self, bench: object) -> None:
        """As `Backend.leave`."""
        self._ray.kill(bench, no_restart=True)

    def on_node(self, node: str, work: Callable[..., Any], *arguments: object) -> Hashable:
        """Ask one node, by its number in `nodes`, for `work(*arguments)`."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        pinned = NodeAffinitySchedulingStrategy(node, soft=False)
        task = self._task.options(num_cpus=0, max_retries=0, scheduling_strategy=pinned)
        return cast("Hashable", task.remote(partial(_called, work), None, arguments, 1, self._folder))


def _called(work: Callable[..., Any], _context: object, arguments: tuple[Any, ...]) -> Any:
    return work(*arguments)


def _reason(error: BaseException) -> str:
    """The first line of what Ray says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"[:300]


def _fetched(context: Any) -> Any:
    """What a shared value stands for."""
    import ray

    (reference,) = context
    return worker.shared(reference.hex(), lambda: ray.get(reference))


def _perform(work: Callable[[Any, Any], Any], context: Any, piece: Any, threads: int, folder: str) -> Answer:
    """A task, in the folder of who asks."""
    worker.stand_in(folder)
    answer = worker.answered(lambda: work(None if context is None else _fetched(context), piece), threads)
    return replace(answer, node=_node(answer.node))


def _node(name: str) -> str:
    """The machine's name with Ray's number of the node: several may run on one machine."""
    import ray

    return f"{name}/{ray.get_runtime_context().get_node_id()[:6]}"


class _RemoteBench(worker.Bench):
    """An actor, in the folder of who asks."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        worker.stand_in(folder)

    def open(self, opens: Callable[[Any, int], Any], context: Any, number: int, threads: int) -> Answer:
        """As `Bench.open`, of what is shared."""
        answer = super().open(opens, _fetched(context), number, threads)
        return replace(answer, node=_node(answer.node))

    def step(self, *arrays: Any) -> Answer:
        """As `Bench.step`."""
        answer = super().step(*arrays)
        return replace(answer, node=_node(answer.node))

    def finish(self) -> Answer:
        """As `Bench.finish`."""
        answer = super().finish()
        return replace(answer, node=_node(answer.node))
