"""Watches the first tokens of an answer and takes threads away that do not get the processors they ask for.

How many to begin with is `cpu_threads`'s choice, setting them the engine's.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_WINDOW = 4  # tokens that are timed together
_WINDOWS = 6  # later nothing is tried any more
_BUSY_SHARE = 0.85  # of the processors' time: threads that compute alone on a core use all of it
_GAIN = 0.9  # fewer threads stay unless they are clearly slower


class ThreadPace:
    """Steps down while threads wait for a core that another program uses, and back up where that was no gain.

    Args:
        threads: used now.
        set_threads: makes llama.cpp use so many.
        clock: seconds that pass.
        processor_clock: seconds that all threads of this process computed.
    """

    def __init__(
        self,
        threads: int,
        set_threads: Callable[[int], object],
        clock: Callable[[], float] = time.perf_counter,
        processor_clock: Callable[[], float] = time.process_time,
    ) -> None:
        self.threads = threads
        self._set = set_threads
        self._clocks = (clock, processor_clock)
        self._began: tuple[float, float] | None = None
        self._tokens = self._windows = 0
        self._before: tuple[int, float] | None = None  # threads and seconds a token, before the last step down

    def token(self) -> None:
        """Told after each token; the first one's time is the prompt's, so it only begins the count."""
        if self._windows >= _WINDOWS or (self.threads == 1 and self._before is None):
            return
        now = (self._clocks[0](), self._clocks[1]())
        if self._began is None:
            self._began = now
            return
        self._tokens += 1
        if self._tokens < _WINDOW:
            return
        wall, computed = (after - before for after, before in zip(now, self._began, strict=True))
        self._began, self._tokens = now, 0
        self._windows += 1
        if wall > 0:
            self._decide(wall / _WINDOW, computed / wall)

    def _decide(self, seconds: float, processors: float) -> None:
        if self._before is not None and seconds * _GAIN > self._before[1]:
            self._change(self._before[0])  # it was slower: back, for good
            self._windows = _WINDOWS
        elif self.threads > 1 and processors < _BUSY_SHARE * self.threads:
            self._before = (self.threads, seconds)
            self._change(max(1, self.threads // 2))
        else:
            self._windows = _WINDOWS

    def _change(self, threads: int) -> None:
        self.threads = threads
        self._set(threads)
