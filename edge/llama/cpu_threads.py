"""How many threads llama.cpp should be given on this machine, and now; devices and memory are `devices`'."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from edgepack.processors import usable_processors

_TOPOLOGY = Path("/sys/devices/system/cpu")
_STAT = Path("/proc/stat")
_CGROUP = Path("/sys/fs/cgroup")
_LOOK_SECONDS = 0.1  # of the kernel's clock of 10 ms: a busy core is told from a free one
_ROUND_UP = 0.3  # of a core: what runs in any machine's background
# Below so many bytes per token a layer is done sooner than several threads can meet at its end: on two cores that
# also did other work, a 6 M model gave 1131 tokens/s with one thread and 30 with two (docs/lab-notes.md).
SMALL_MODEL_BYTES = 16 << 20


@cache
def physical_cores() -> int:
    """Cores that this process may use, two hyper-threads counted as one: more threads only wait for each other."""
    cores = {_core_of(cpu) for cpu in usable_processors()}
    found = max(1, len(usable_processors()) // 2) if None in cores else max(1, len(cores))
    quota = cpu_quota()
    return found if quota is None else max(1, min(found, int(quota)))


def _core_of(cpu: int) -> tuple[str, str] | None:
    folder = _TOPOLOGY / f"cpu{cpu}" / "topology"
    try:
        package = (folder / "physical_package_id").read_text(encoding="ascii").strip()
        return package, (folder / "core_id").read_text(encoding="ascii").strip()
    except OSError:
        return None


def cpu_quota(folder: Path = _CGROUP) -> float | None:
    """Processors' worth of time that a container may use, None where there is no limit (`cpu.max` of cgroup v2)."""
    try:
        quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        return int(quota) / int(period) if quota != "max" else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def best_threads(bytes_per_token: int) -> int:
    """Threads for a model that reads so many bytes of weights for each token, on an idle machine."""
    return 1 if bytes_per_token < SMALL_MODEL_BYTES else physical_cores()


def threads_now(bytes_per_token: int) -> int:
    """As `best_threads`, on the machine as busy as it is."""
    return 1 if bytes_per_token < SMALL_MODEL_BYTES else free_cores()


@cache
def first_look() -> BusyClock | None:
    """Where `free_cores` begins to look; call it early, so that nobody waits for the tenth of a second."""
    return _busy_clock()


@cache
def free_cores() -> int:
    """Physical cores that others leave free now, at least 1; looked at once a process, for a tenth of a second.

    llama.cpp's threads meet after each operation: one that must share its core makes all of them wait for it.
    """
    before = first_look()
    if before is None:
        return _free(physical_cores(), len(usable_processors()), _load())
    time.sleep(max(0.0, before.at + _LOOK_SECONDS - time.monotonic()))
    after = _busy_clock()
    busy = 0.0 if after is None else before.busy_until(after)
    return _free(physical_cores(), len(usable_processors()), busy)


def cores_are_shared() -> bool:
    """Whether others use cores now: then a thread that waits should sleep instead of polling."""
    return free_cores() < physical_cores()


def _free(physical: int, logical: int, busy: float) -> int:
    share = max(0.0, 1.0 - busy / max(logical, 1))
    return max(1, min(physical, int(physical * share + _ROUND_UP)))


def _load() -> float:
    """Runnable processes of the last minute, where the system says nothing finer; 0 on Windows."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


@dataclass(frozen=True)
class BusyClock:
    """Seconds that the usable processors have worked, without what this process did, and when that was read."""

    busy: float
    at: float

    def busy_until(self, later: BusyClock) -> float:
        """Processors that others kept busy between the two."""
        elapsed = later.at - self.at
        return max(0.0, later.busy - self.busy) / elapsed if elapsed > 0 else 0.0


def _busy_clock() -> BusyClock | None:
    if not hasattr(os, "sysconf"):
        return None
    try:
        lines = _STAT.read_text(encoding="ascii").splitlines()
        ticks = sum(_busy_ticks(line) for line in lines if _is_usable(line))
        return BusyClock(ticks / os.sysconf("SC_CLK_TCK") - time.process_time(), time.monotonic())
    except (OSError, ValueError):
        return None


def _is_usable(line: str) -> bool:
    name = line.split(" ", 1)[0]
    return name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in usable_processors()


def _busy_ticks(line: str) -> int:
    """All but idle and waiting for disks (fields 4 and 5 of proc(5)); guests are in user time already."""
    fields = [int(field) for field in line.split()[1:9]]
    return sum(fields) - sum(fields[3:5])
