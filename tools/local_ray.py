"""Ray on this machine for tests and tools: nodes of one processor each, all in one folder, gone at the end.

Every node is a `ray start` of its own, in a session of its own, so that nothing of Ray runs in the process that asks
and no signal of one reaches the other. What is started is known by its session; nothing else is ever ended.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

STORE_BYTES = 128 << 20  # of objects, a node
HOST = "127.0.0.1"
_SECONDS = 600.0  # for a node to be up: a busy machine is no failure
_UP = "This command will now block"  # what `ray start --block` says when its node is one of the cluster
_AGENTS = (b"ray::DashboardAgent", b"ray::RuntimeEnvAgent")  # of a node: it ends itself when one of them does
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_raylet_start_wait_time_s": "500",
    "RAY_worker_register_timeout_seconds": "1200",  # else a worker that starts slowly is ended, again and again
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "30",
    "RAY_worker_niceness": "0",  # Ray's own 15 leaves a worker next to nothing beside anything else that runs
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Idle workers stay: another start of theirs is a first import, which is what tests would be waiting for.
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
}
_NODE = (
    f"--node-ip-address={HOST}", "--num-cpus=1", "--num-gpus=0", "--include-log-monitor=False", "--block",
    f"--object-store-memory={STORE_BYTES}",
)  # fmt: skip
_PORTS = ("--min-worker-port=0", "--max-worker-port=0")  # as are free: nodes of one machine share them
_HEAD = ("--include-dashboard=false", "--no-monitor")
_GROUPS = Path("/sys/fs/cgroup/cpu")
_PERIOD = 50_000  # microseconds of a quota: short, so that a worker's share is even
_SHARES = 1024  # of a process in a group that weighs as any
_LOOK_SECONDS = 0.2
_COMMAND = (
    "import sys; from ray.scripts.scripts import main; sys.argv[0] = 'ray'; sys.exit(main())"  # with this interpreter
)


@dataclass
class Node:
    """A node that runs.

    Attributes:
        process: `ray start`, the first of its session.
        log: what it says.
        name: of the node, as workers tell it.
    """

    process: subprocess.Popen[bytes]
    log: Path
    name: str

    def processes(self) -> list[int]:
        """Numbers of all that belong to the node's session."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has gone meanwhile
                if os.getsid(int(folder.name)) == self.process.pid:
                    found.append(int(folder.name))
        return found

    def end(self) -> None:
        """All of it goes at once, without a word; nothing of it is left."""
        while left := self.processes():
            for number in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.1)


@dataclass
class LocalRay:
    """A running cluster.

    Attributes:
        folder: of all that it writes.
        port: of the head.
        nodes: the head first, then in the order in which they were added.
    """

    folder: Path
    port: int
    nodes: list[Node] = field(default_factory=list)

    @property
    def address(self) -> str:
        """`HOST:PORT`."""
        return f"{HOST}:{self.port}"

    def begin(self) -> Node:
        """One more node, the first of them the head; it may not be up yet."""
        name = f"node-{len(self.nodes)}"
        role = (
            [f"--address={self.address}", "--dashboard-agent-listen-port=0"]
            if self.nodes
            else ["--head", f"--port={self.port}", f"--temp-dir={self.folder}/ray", *_HEAD]
        )
        command = [
            sys.executable,
            "-c",
            _COMMAND,
            "start",
            *role,
            *_NODE,
            *_PORTS,
            f"--object-store-memory={STORE_BYTES}",
        ]
        own = {**os.environ, **_SETTINGS, "RAY_TMPDIR": str(self.folder), "EDGEPACK_NODE_NAME": name}
        log = self.folder / f"{name}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command, env=own, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        self.nodes.append(Node(process, log, name))
        return self.nodes[-1]

    def wait_for(self, node: Node) -> None:
        """Until a node is up; raises RuntimeError with what it said where it will not be."""
        end = time.monotonic() + _SECONDS
        while _UP not in (told := node.log.read_text(errors="replace")):
            if node.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"no Ray on this machine: {told[-2000:]}")
            time.sleep(0.1)

    def add(self) -> None:
        """One more node, up."""
        self.wait_for(self.begin())

    def lose(self) -> None:
        """The last node goes without a word."""
        self.nodes.pop().end()

    def workers(self) -> list[int]:
        """Numbers of the processes that work, or wait for work."""
        return [number for node in self.nodes for number in _working(node)]

    def kill_worker(self, number: int) -> bool:
        """Kill one of those that have a piece of work in hand; whether there was one.

        Those that wait, or are about to, have nothing to lose. Killed as they start they can leave a node of Ray 2.60
        that starts no worker any more ("process_failed_rate_limited" in its debug_state.txt), whatever is asked of it.
        """
        found = [number for node in self.nodes for number in _working(node, idle=False)]
        if found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(found[number % len(found)], signal.SIGKILL)
        return bool(found)

    @contextmanager
    def limited(self, cores: float) -> Iterator[None]:
        """Let every node's workers have `cores` of a core while the block runs, by control groups (version 1).

        What Ray itself runs is left alone: it takes some hundredths of a core a node, which a real node does not feel.
        The groups lie below this process's own, so that all of it together weighs as many processes as there are nodes.

        Raises:
            OSError: the system does not let us.
        """
        parent = _own_group() / self.folder.name
        ended = threading.Event()
        parent.mkdir()
        (parent / "cpu.shares").write_text(str(_SHARES * len(self.nodes)))
        groups = {node.name: parent / node.name for node in self.nodes}
        for group in groups.values():
            group.mkdir()
            (group / "cpu.cfs_period_us").write_text(str(_PERIOD))
            (group / "cpu.cfs_quota_us").write_text(str(int(_PERIOD * cores)))
        thread = threading.Thread(target=self._put_into, args=(groups, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            for group in groups.values():
                for number in (group / "cgroup.procs").read_text().split():
                    with contextlib.suppress(OSError):
                        (_own_group() / "cgroup.procs").write_text(number)
                group.rmdir()
            parent.rmdir()

    def _put_into(self, groups: dict[str, Path], ended: threading.Event) -> None:
        """Put workers into their nodes' groups, again and again: Ray may start more of them."""
        known: set[int] = set()
        while True:
            for node in self.nodes:
                for number in set(_working(node)) - known:
                    with contextlib.suppress(OSError):  # it has gone meanwhile
                        (groups[node.name] / "cgroup.procs").write_text(str(number))
                        known.add(number)
            if ended.wait(_LOOK_SECONDS):
                return

    def end(self) -> None:
        """Everything goes."""
        for node in reversed(self.nodes):
            node.end()


def _working(node: Node, *, idle: bool = True) -> list[int]:
    """Numbers of a node's processes that work, or wait for work."""
    found = []
    for number in sorted(node.processes()):
        with contextlib.suppress(OSError):
            name = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")[0]
            left_out = _AGENTS if idle else (*_AGENTS, b"ray::IDLE")
            if name.startswith(b"ray::") and not name.startswith(left_out):
                found.append(number)
    return found


def _own_group() -> Path:
    """This process's control group of processors."""
    lines = (line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines())
    return _GROUPS / next((path.lstrip("/") for _, kinds, path in lines if "cpu" in kinds.split(",")), "")


@contextmanager
def local_ray(nodes: int) -> Iterator[LocalRay]:
    """A cluster of so many nodes while the block runs."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short: sockets lie below it
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    running = LocalRay(folder, port)
    try:
        for _ in range(nodes):  # one after the other: two at once take the same socket's name, and one of them dies
            running.add()
        yield running
    finally:
        running.end()
        shutil.rmtree(folder, ignore_errors=True)
