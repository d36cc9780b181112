"""The processors that this process may use. Cores, memory and devices are `edgepack.edge`'s."""

from __future__ import annotations

import os


def usable_processors() -> set[int]:
    """Logical processors that this process may use: its affinity where the system has one, else all."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def default_threads() -> int:
    """Threads of work that scales with processors: one for each that this process may use."""
    return len(usable_processors())
