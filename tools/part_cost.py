"""What one part of a bench takes: the processor's seconds, and the highest memory of the process meanwhile."""

from __future__ import annotations

import re
import resource
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class PartCost:
    """Filled in when the part is over.

    Attributes:
        seconds: of processor time, all threads.
        peak: bytes resident at most, what lay there before the part included; on systems other than Linux at most since
            the process began.
    """

    seconds: float = 0.0
    peak: int = 0

    @property
    def megabytes(self) -> str:
        """The peak for a table."""
        return f"{self.peak / 1e6:,.0f}"


@contextmanager
def counted() -> Iterator[PartCost]:
    """What the block of a `with` takes."""
    found = PartCost()
    with suppress(OSError):
        _RESET.write_text("5")  # forgets the peak so far (proc(5))
    began = time.process_time()
    yield found
    found.seconds, found.peak = time.process_time() - began, peak_memory()


def peak_memory() -> int:
    """Bytes resident at most of this process so far, or since a part of it began to be counted."""
    told = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text()) if _STATUS.exists() else None
    return 1024 * (int(told[1]) if told else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
