"""What runs on a worker: the work itself, with what the crew shares kept from one piece to the next.

It knows nothing of the engine that brought it there but how to fetch what is shared, which it is given.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

from edgepack.errors import EdgepackError, ResourceError
from edgepack.pipeline.cluster.backend import Answer

if TYPE_CHECKING:
    from collections.abc import Callable

_KEPT = 2  # shared values that a worker remembers: a plan and a checkpoint
_shared: dict[str, Any] = {}  # of this process, which is the cluster's and no caller's


def shared(key: str, fetch: Callable[[], Any]) -> Any:
    """The value that a key stands for, fetched once."""
    if key not in _shared:
        while len(_shared) >= _KEPT:
            _shared.pop(next(iter(_shared)))
        _shared[key] = fetch()
    return _shared[key]


def stand_in(folder: str) -> None:
    """Relative names mean here what they mean where the work comes from, as far as this machine has the folder."""
    with contextlib.suppress(OSError):
        os.chdir(folder)


def answered(work: Callable[[], Any], threads: int) -> Answer:
    """What the work gives or raises; torch computes with `threads` threads meanwhile.

    Raises:
        MemoryError: memory was short, for the engine to tell.
    """
    began = time.monotonic()
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    try:
        return Answer(work(), None, node_name(), time.monotonic() - began, peak_memory())
    except EdgepackError as error:
        return Answer(None, error, node_name())
    except OSError as error:
        told = f"cluster: node '{node_name()}': {error.strerror or error}"
        return Answer(None, ResourceError(f"{told}: '{error.filename}'" if error.filename else told), node_name())


def node_name() -> str:
    """What people call this machine."""
    return os.environ.get("EDGEPACK_NODE_NAME") or socket.gethostname()


def peak_memory() -> int:
    """Most memory that this process ever held, in bytes; 0 where the system does not say."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most << 10


class Bench:
    """A worker that keeps a relay's stage between two calls."""

    def __init__(self) -> None:
        self._stage: Any = None
        self._threads = 1

    def open(self, opens: Callable[[Any, int], Any], context: Any, number: int, threads: int) -> Answer:
        """Begin stage `number`; what was there goes."""
        self.close()
        self._threads = threads

        def begin() -> None:
            self._stage = opens(context, number)

        return answered(begin, threads)

    def step(self, *arrays: Any) -> Answer:
        """The stage's next part."""
        return answered(lambda: self._stage.step(*arrays), self._threads)

    def finish(self) -> Answer:
        """What the stage kept; it goes."""
        answer = answered(self._stage.finish, self._threads)
        self.close()
        return answer

    def close(self) -> None:
        """Let the stage go."""
        stage, self._stage = self._stage, None
        if stage is not None:
            stage.close()
