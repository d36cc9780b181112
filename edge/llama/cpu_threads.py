"""How many threads llama.cpp should be given on this machine; devices and memory are `devices`'."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from edgepack.processors import usable_processors

_TOPOLOGY = Path("/sys/devices/system/cpu")
# Below so many bytes per token a layer is done sooner than several threads can meet at its end: on two cores that
# also did other work, a 6 M model gave 1131 tokens/s with one thread and 30 with two (docs/lab-notes.md).
SMALL_MODEL_BYTES = 16 << 20


@cache
def physical_cores() -> int:
    """Cores that this process may use, two hyper-threads counted as one: more threads only wait for each other."""
    cores = {_core_of(cpu) for cpu in usable_processors()}
    if None in cores:
        return max(1, len(usable_processors()) // 2)
    return max(1, len(cores))


def _core_of(cpu: int) -> tuple[str, str] | None:
    folder = _TOPOLOGY / f"cpu{cpu}" / "topology"
    try:
        package = (folder / "physical_package_id").read_text(encoding="ascii").strip()
        return package, (folder / "core_id").read_text(encoding="ascii").strip()
    except OSError:
        return None


def best_threads(bytes_per_token: int) -> int:
    """Threads for a model that reads so many bytes of weights for each token."""
    return 1 if bytes_per_token < SMALL_MODEL_BYTES else physical_cores()
