"""Ray on this machine for tests and tools: nodes of one processor each, all in one folder, gone at the end.

Nothing is written outside the folder and no process is left; `RAY_TMPDIR` must be short, as sockets lie below it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

STORE_BYTES = 128 << 20  # of objects, a node
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_raylet_start_wait_time_s": "180",  # a busy machine is no failure
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "10",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass
class LocalRay:
    """A running cluster.

    Attributes:
        cluster: Ray's own helper.
        nodes: that were added to the head, the last last.
    """

    cluster: Any
    nodes: list[Any] = field(default_factory=list)

    @property
    def address(self) -> str:
        """`HOST:PORT`."""
        return str(self.cluster.address)

    def add(self) -> None:
        """One more node."""
        self.nodes.append(self.cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES))

    def lose(self) -> None:
        """The last node goes without a word."""
        self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)

    def workers(self) -> list[int]:
        """Numbers of the processes that work."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                name = (folder / "cmdline").read_bytes().split(b"\0")[0]
                if name.startswith(b"ray::") and self._is_ours(folder):
                    found.append(int(folder.name))
        return found

    def _is_ours(self, folder: Path) -> bool:
        return os.environ["RAY_TMPDIR"].encode() in (folder / "environ").read_bytes()

    def kill_worker(self, number: int) -> bool:
        """Kill one of them; whether there was one."""
        found = self.workers()
        if found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(found[number % len(found)], signal.SIGKILL)
        return bool(found)


@contextmanager
def local_ray(nodes: int) -> Iterator[LocalRay]:
    """A cluster of so many nodes while the block runs."""
    folder = Path(tempfile.mkdtemp(prefix="epr", dir="/tmp"))
    (folder / "ray").mkdir()
    before = {name: os.environ.get(name) for name in (*_SETTINGS, "RAY_TMPDIR")}
    os.environ.update(_SETTINGS, RAY_TMPDIR=str(folder))
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        cluster.add_node(num_cpus=1, include_dashboard=False, object_store_memory=STORE_BYTES)
        running = LocalRay(cluster)
        for _ in range(nodes - 1):
            running.add()
        yield running
    finally:
        cluster.shutdown()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(folder, ignore_errors=True)
