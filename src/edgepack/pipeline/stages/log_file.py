"""The log of a run: a line an event with its time, added to what earlier runs wrote. It is this run's own."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from edgepack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@contextmanager
def logged(path: Path | None) -> Iterator[Callable[[str], object]]:
    """Opens the log at once, before any work; the value is called with each line. None keeps none.

    Raises:
        UsageError: it cannot be opened.
    """
    if path is None:
        yield lambda _line: None
        return
    try:
        stream = path.open("a", encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"--log '{path}': {getattr(error, 'strerror', None) or error}") from None
    with stream:

        def write(line: str) -> None:
            now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
            stream.write(f"{now} {' '.join(line.split())}\n")
            stream.flush()

        yield write
