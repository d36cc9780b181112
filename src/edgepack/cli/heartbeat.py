"""A line each minute while long work goes on where no terminal shows a bar: logs of CI and nohup are not silent.

What is worked on is told by `output.terminal_progress`; commands know nothing of it.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECONDS = 60.0
# Commands that answer a person or a client meanwhile.
_INTERACTIVE = frozenset({"run", "serve", "fit", "doctor", "cache"})


@dataclass
class Stretch:
    """A named part of the work: `done` of `total` units."""

    label: str
    total: int
    unit: str
    done: int = 0

    def __str__(self) -> str:
        share = f" ({100 * self.done / self.total:.0f} %)" if self.total > 0 else ""
        if self.unit == "B":
            return f"{self.label}: {self.done / 1e6:.0f} of {self.total / 1e6:.0f} MB{share}"
        return f"{self.label}: {self.done} of {self.total}{self.unit}{share}"


class Heartbeat:
    """Prints a line on standard error each minute until it is stopped.

    Args:
        command: its name, for lines while no stretch is told.
        seconds: between lines.
    """

    def __init__(self, command: str, seconds: float) -> None:
        self._command, self._seconds = command, seconds
        self._began = time.monotonic()
        self._stretches: list[Stretch] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._ended.wait(self._seconds):
            click.echo(self.line(), err=True)

    def line(self) -> str:
        """What is being done, and since when."""
        minutes = (time.monotonic() - self._began) / 60
        stretches = list(self._stretches)
        doing = str(stretches[-1]) if stretches else "at work"
        return f"edgepack {self._command}: {doing}, {minutes:.0f} min"

    @contextmanager
    def stretch(self, label: str, total: int, unit: str) -> Iterator[Callable[[int], object]]:
        """A stretch of `total` units; the context's value is called with each amount done."""
        stretch = Stretch(label, total, unit)

        def advance(amount: int) -> None:
            stretch.done += amount

        self._stretches.append(stretch)
        try:
            yield advance
        finally:
            self._stretches.remove(stretch)

    def stop(self) -> None:
        """Print no more."""
        self._ended.set()
        self._thread.join()


@contextmanager
def beating(command: str | None, *, watched: bool) -> Iterator[Heartbeat | None]:
    """A heartbeat while the block runs; None for commands that are not long, and where a terminal shows bars."""
    if watched or command is None or command in _INTERACTIVE:
        yield None
        return
    heart = Heartbeat(command, SECONDS)
    try:
        yield heart
    finally:
        heart.stop()
