"""Runs a function over many pieces on several threads and gives the results in order, memory bounded.

It knows nothing of what pieces are.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from edgepack.processors import default_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from concurrent.futures import Future

_IN_FLIGHT_BYTES = 16 << 20  # of pieces that tell a size: a few large ones must not fill the memory

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def ordered_map(
    function: Callable[[Piece], Result],
    pieces: Iterable[Piece],
    threads: int | None = None,
    *,
    ahead: int | None = None,
    size: Callable[[Piece], int] = lambda _piece: 0,
) -> Generator[Result, None, None]:
    """`function` of every piece, in order; numpy, hashlib, zstd and the kernels release the interpreter meanwhile.

    An error of `function` is raised where its result would have come; what has not begun by then is cancelled.

    Args:
        function: called on worker threads.
        pieces: taken as they are needed, at most `ahead` + 1 ahead of what the caller has consumed.
        threads: workers; None for one a processor.
        ahead: results and pieces under way that may wait for the caller; None for twice the workers.
        size: bytes that a piece takes in memory; no more than 16 MiB of them, or one piece, are under way at once.
    """
    workers = threads or default_threads()
    most = 2 * workers if ahead is None else ahead
    waiting: deque[tuple[int, Future[Result]]] = deque()
    in_flight = 0
    with ThreadPoolExecutor(workers) as pool:
        try:
            for piece in pieces:
                bytes_ = size(piece)
                while waiting and in_flight + bytes_ > _IN_FLIGHT_BYTES:
                    in_flight -= waiting[0][0]
                    yield waiting.popleft()[1].result()
                waiting.append((bytes_, pool.submit(function, piece)))
                in_flight += bytes_
                if len(waiting) > most:
                    in_flight -= waiting[0][0]
                    yield waiting.popleft()[1].result()
            while waiting:
                yield waiting.popleft()[1].result()
        finally:
            for _bytes, future in waiting:
                future.cancel()
