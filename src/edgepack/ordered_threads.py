"""Runs a function over many pieces on several threads and gives the results in order, memory bounded.

It knows nothing of what pieces are.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from edgepack.processors import default_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def ordered_map(
    function: Callable[[Piece], Result],
    pieces: Iterable[Piece],
    threads: int | None = None,
    *,
    ahead: int | None = None,
) -> Iterator[Result]:
    """`function` of every piece, in order; numpy, hashlib, zstd and the kernels release the interpreter meanwhile.

    An error of `function` is raised where its result would have come; what has not begun by then is cancelled.

    Args:
        function: called on worker threads.
        pieces: taken as they are needed, at most `ahead` + 1 ahead of what the caller has consumed.
        threads: workers; None for one a processor.
        ahead: results and pieces under way that may wait for the caller; None for twice the workers.
    """
    workers = threads or default_threads()
    most = 2 * workers if ahead is None else ahead
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for piece in pieces:
                waiting.append(pool.submit(function, piece))
                if len(waiting) > most:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
