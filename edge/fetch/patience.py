"""How often a connection may fail before it is given up, and how long to wait between: the same everywhere."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgepack.edge.fetch.web import ConnectionCutError
from edgepack.errors import NetworkError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TRIES = 7  # in a row that bring nothing
_FIRST_PAUSE = 0.25  # seconds; doubled from try to try
_LONGEST_PAUSE = 10.0


class Patience:
    """Counts failures in a row.

    Args:
        sleep: called with the seconds to wait before the next try.
    """

    def __init__(self, sleep: Callable[[float], object] = time.sleep) -> None:
        self._sleep = sleep
        self._failures = 0

    def progress(self) -> None:
        """Something came: the count begins again."""
        self._failures = 0

    @contextmanager
    def over_cuts(self) -> Iterator[None]:
        """One try: a cut connection is waited over, so that the caller tries again.

        Raises:
            NetworkError: `TRIES` in a row brought nothing.
        """
        try:
            yield
        except ConnectionCutError as error:
            self._failures += 1
            if self._failures >= TRIES:
                self._failures = 0
                raise NetworkError(f"{error} ({TRIES} times)") from None
            self._sleep(max(error.wait, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (self._failures - 1))))
