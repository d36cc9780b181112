"""Who is answered now and who waits: as many requests at the engine as it has slots, the others in order.

Requests that wait here are not the engine's yet: they survive its death.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from edgepack.edge.serve.protocol.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MOST_WAITING = 64
_RETRY_SECONDS = 5.0


class Places:
    """As many places as `count`; who comes when all are taken waits, unless too many do already.

    Attributes:
        waiting: how many wait now.
        taken: how many places are taken now.
    """

    def __init__(self, count: int, most_waiting: int = MOST_WAITING) -> None:
        self._free = asyncio.Semaphore(count)
        self._most_waiting = most_waiting
        self.waiting = 0
        self.taken = 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place and keep it as long as the block runs.

        Raises:
            RequestError: too many wait (503, with the time after which to try again).
        """
        if self.waiting >= self._most_waiting:
            text = f"{self._most_waiting} requests are waiting already"
            raise RequestError(text, status=503, retry_after=_RETRY_SECONDS)
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1
            self._free.release()
