"""Runs a function over many pieces on several threads and gives the results in order, memory bounded."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from edgepack.processors import default_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from concurrent.futures import Future

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def ordered_map(
    function: Callable[[Piece], Result], pieces: Iterable[Piece], threads: int | None = None
) -> Generator[Result, None, None]:
    """`function` of every piece, in order; numpy, hashlib and zstd release the interpreter while they work.

    Args:
        function: called on worker threads.
        pieces: taken as they are needed, at most 2 × threads + 1 ahead of what the caller has consumed.
        threads: workers; None for one a core.
    """
    workers = threads or default_threads()
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for piece in pieces:
                waiting.append(pool.submit(function, piece))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
