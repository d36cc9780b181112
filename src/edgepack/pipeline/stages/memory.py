"""The greatest memory of this process over a stretch of work. What is too much is the caller's to say."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

_STATUS = Path("/proc/self/status")
_OWN = re.compile(rb"^Rss(?:Anon|Shmem):\s*(\d+) kB", re.MULTILINE)
_EVERY_SECONDS = 0.05


def own_bytes() -> int:
    """Memory that is this process's own now: pages of mapped files, which the system takes back, do not count.

    Where the system does not tell them apart, the greatest memory of the process so far.
    """
    try:
        return 1024 * sum(int(found) for found in _OWN.findall(_STATUS.read_bytes()))
    except OSError:
        from edgepack.edge.bench import peak_memory_bytes

        return peak_memory_bytes()


class PeakMemory:
    """Looks at the memory twenty times a second for the length of a `with` block."""

    def __init__(self) -> None:
        self._peak, self._ended = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._ended.set()
        self._thread.join()

    def begin(self) -> None:
        """Forget what was seen so far: a new stretch begins."""
        self._peak = 0

    @property
    def bytes(self) -> int:
        """The greatest since the stretch began."""
        self._peak = max(self._peak, own_bytes())
        return self._peak

    def _watch(self) -> None:
        while not self._ended.wait(_EVERY_SECONDS):
            self._peak = max(self._peak, own_bytes())
