"""Which of several addresses is asked next, and which have proved wrong or dead."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from edgepack.edge.fetch.web import shown
from edgepack.errors import NetworkError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_WRONG_ALLOWED = 1  # a line may flip a bit once; a server that does it twice is not asked again


class NoMirrorLeftError(NetworkError):
    """Every address gave up or gave other bytes."""


class Mirrors:
    """Addresses of one file; safe to use from several threads.

    Args:
        urls: in the order of preference; at least one.
        note: told in a line why an address is not asked again.
    """

    def __init__(self, urls: Sequence[str], note: Callable[[str], object]) -> None:
        self._urls = list(dict.fromkeys(urls))
        self._alive = list(self._urls)
        self._wrong = dict.fromkeys(self._urls, 0)
        self._last = ""
        self._note = note
        self._lock = threading.Lock()

    def choose(self, number: int) -> str:
        """The address that connection `number` asks: connections spread over those that work.

        Raises:
            NoMirrorLeftError: none works; the text says why the last one does not.
        """
        with self._lock:
            if not self._alive:
                raise NoMirrorLeftError(self._last)
            return self._alive[number % len(self._alive)]

    def drop(self, url: str, why: str) -> None:
        """Ask `url` no more."""
        with self._lock:
            self._last = why
            if url in self._alive:
                self._alive.remove(url)
                if self._alive:
                    self._note(f"{why}; going on with {shown(self._alive[0])}")

    def wrong(self, url: str, where: str) -> None:
        """`url` gave bytes that differ from their digest: once is forgiven."""
        with self._lock:
            self._wrong[url] += 1
            again = self._wrong[url] > _WRONG_ALLOWED
        if again:
            self.drop(url, f"{shown(url)}: {where}: the bytes it gives differ from their digest")
