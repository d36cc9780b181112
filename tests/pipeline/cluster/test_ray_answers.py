"""What Ray says of a piece that gave nothing becomes what the order of work asks for: again, smaller, or one line."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from edgepack.errors import DependencyError, NetworkError, ResourceError
from edgepack.pipeline.cluster.backend import WorkerLostError, WorkerMemoryError
from edgepack.pipeline.cluster.ray_backend import RayBackend

NAMES = (
    "OutOfMemoryError", "WorkerCrashedError", "NodeDiedError", "ObjectLostError", "RayActorError",
    "TaskUnschedulableError", "ActorUnschedulableError", "GetTimeoutError", "LocalRayletDiedError", "OutOfDiskError",
)  # fmt: skip


class RayTaskError(Exception):
    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


KINDS = {name: type(name, (Exception,), {}) for name in NAMES}


def taken(failure: Exception) -> Any:
    """What taking an answer gives where Ray raises `failure`; nothing of Ray's is imported."""

    def get(_ticket: object, timeout: float) -> None:
        assert timeout > 0
        raise failure

    exceptions = SimpleNamespace(**KINDS, RayTaskError=RayTaskError, RayError=Exception)
    ray = SimpleNamespace(remote=lambda work: work, exceptions=exceptions, get=get)
    return RayBackend(ray).take("ticket")


@pytest.mark.parametrize("failure", [KINDS["OutOfMemoryError"]("killed"), RayTaskError(MemoryError())])
def test_a_piece_that_memory_was_short_for_is_to_be_cut(failure: Exception) -> None:
    with pytest.raises(WorkerMemoryError):
        taken(failure)


@pytest.mark.parametrize("name", [*NAMES[1:8]])
def test_a_piece_whose_worker_or_node_is_gone_is_to_be_done_again(name: str) -> None:
    with pytest.raises(WorkerLostError) as lost:
        taken(KINDS[name]("the worker died"))
    assert not isinstance(lost.value, WorkerMemoryError), "it would be cut, and is not too large"


def test_a_full_disk_of_a_node_ends_the_command_in_one_line() -> None:
    with pytest.raises(ResourceError, match="cluster: the disk of a node is full") as refused:
        taken(KINDS["OutOfDiskError"]("/tmp/ray is over 95% full\nmore"))
    assert "\n" not in str(refused.value)


def test_the_end_of_the_own_node_ends_the_command_in_one_line() -> None:
    with pytest.raises(NetworkError, match="start it and run again with --resume"):
        taken(KINDS["LocalRayletDiedError"]())


@pytest.mark.parametrize("cause", [ModuleNotFoundError("No module named 'edgepack'"), AttributeError("no 'run_batch'")])
def test_a_node_that_has_not_this_edgepack_is_told_as_such(cause: Exception) -> None:
    with pytest.raises(DependencyError, match="cluster: a node has another edgepack, or none"):
        taken(RayTaskError(cause))


def test_what_is_none_of_these_is_raised_as_it_is() -> None:
    with pytest.raises(RayTaskError):
        taken(RayTaskError(ZeroDivisionError()))
