"""Keeps one engine running: starts it, notices its death, starts it again, with a limit.

What a request that was being answered gets is left to those who ask.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING

from edgepack.edge.serve.engine.child import EngineChild
from edgepack.errors import EdgepackError

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgepack.edge.serve.engine.settings import EngineSettings

# An engine that dies more often than this is not started until a death is older than the window.
MOST_DEATHS = 30
WINDOW_SECONDS = 60.0
_DYING_SECONDS = 5.0  # the system gives back the memory of a large model


class EngineDownError(Exception):
    """There is no engine now, and there will be none for `retry_after` seconds."""

    def __init__(self, reason: str, retry_after: float) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class DeathLimit:
    """How often an engine may die.

    Args:
        most: deaths within the window after which one has to wait.
        window: seconds.
        clock: seconds that only grow.
    """

    def __init__(
        self, most: int = MOST_DEATHS, window: float = WINDOW_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._deaths: deque[float] = deque(maxlen=most)
        self._window = window
        self._clock = clock

    def record(self) -> None:
        """One more death."""
        self._deaths.append(self._clock())

    def wait(self) -> float:
        """Seconds until another start is allowed."""
        if len(self._deaths) < (self._deaths.maxlen or 0):
            return 0.0
        return max(0.0, self._deaths[0] + self._window - self._clock())


class EngineWatch:
    """The engine of one task.

    Args:
        settings: how each engine is started.
        note: told of each death.
        limit: of deaths.
    """

    def __init__(
        self, settings: EngineSettings, note: Callable[[str], object], limit: DeathLimit | None = None
    ) -> None:
        self.settings = settings
        self.deaths = 0
        self._note = note
        self._limit = limit or DeathLimit()
        self._child: EngineChild | None = None
        self._changed = asyncio.Condition()
        self._watcher: asyncio.Task[None] | None = None
        self._down = ""
        self._lock = asyncio.Lock()

    @property
    def running(self) -> bool:
        """Whether there is an engine now."""
        return self._child is not None

    @property
    def now(self) -> EngineChild | None:
        """The engine that runs now."""
        return self._child

    async def start(self) -> None:
        """Start the first one; a second call does nothing.

        Raises:
            ModelRuntimeError: the model cannot be opened.
        """
        async with self._lock:
            if self._watcher is None:
                self._child = await EngineChild.start(self.settings)
                self._watcher = asyncio.create_task(self._watch())

    async def engine(self) -> EngineChild:
        """The running engine; while one is being started, that one.

        Raises:
            EngineDownError: engines died too often, or the model cannot be opened any more.
        """
        async with self._changed:
            while self._child is None:
                if self._down:
                    raise EngineDownError(self._down, max(1.0, self._limit.wait()))
                await self._changed.wait()
            return self._child

    async def noticed(self, engine: EngineChild) -> None:
        """Wait until the death of `engine`, which hung up or cannot be reached, is known here; it ends in a moment.

        One that only hung up is left alone.
        """
        try:
            await asyncio.wait_for(engine.gone.wait(), _DYING_SECONDS)
        except asyncio.TimeoutError:
            return
        async with self._changed:
            while self._child is engine:
                await self._changed.wait()

    async def close(self) -> None:
        """End the engine and watch no more."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        if self._child is not None:
            await self._child.kill()

    async def _watch(self) -> None:
        while True:
            if self._child is not None:
                await self._child.gone.wait()
                self.deaths += 1
                self._limit.record()
                self._note(f"{self.settings.name}: the engine died ({self._child.end()}); starting another")
                await self._set(None, "")
            if (seconds := self._limit.wait()) > 0:
                await self._set(None, f"the engine died {MOST_DEATHS} times within {WINDOW_SECONDS:.0f} s")
                await asyncio.sleep(seconds)
            await self._restart()

    async def _restart(self) -> None:
        try:
            await self._set(await EngineChild.start(self.settings), "")
        except EdgepackError as error:
            self._limit.record()
            await self._set(None, str(error))
            await asyncio.sleep(1)

    async def _set(self, child: EngineChild | None, down: str) -> None:
        async with self._changed:
            self._child, self._down = child, down
            self._changed.notify_all()
