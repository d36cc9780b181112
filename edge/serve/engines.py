"""The engines behind one model: one that generates text, and one for embeddings or ranks, started when first asked.

llama.cpp's contexts do one or the other; both map the same file, so that its pages are in memory once.
"""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgepack.edge.serve.engine.exchange import EngineGoneError, EngineUnreachableError, exchange
from edgepack.edge.serve.engine.watch import EngineDownError, EngineWatch
from edgepack.edge.serve.places import Places
from edgepack.edge.serve.protocol.errors import RequestError, Secrets, engine_error
from edgepack.errors import EdgepackError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from edgepack.edge.serve.engine.exchange import EngineAnswer
    from edgepack.edge.serve.engine.settings import EngineSettings, Task
    from edgepack.edge.serve.protocol.facts import ServedFacts

_DIED = "the engine died while it answered; it is being started again"
_RETRY_SECONDS = 1.0


class Engines:
    """What requests are answered with.

    Args:
        settings: of each task's engine; the first is started at once, others when they are asked for.
        facts: of the model; what only an engine knows is filled in by `start`.
        note: told of deaths.
    """

    def __init__(
        self, settings: Mapping[Task, EngineSettings], facts: ServedFacts, note: Callable[[str], object]
    ) -> None:
        self.facts = facts
        self.main: Task = next(iter(settings))
        paths = [path for one in settings.values() for path in (one.model, one.mmproj, *(a for a, _s in one.adapters))]
        self.secrets = Secrets.of_paths(facts.name, paths)
        self._watches = {task: EngineWatch(one, note) for task, one in settings.items()}
        self._places = {task: Places(one.slots) for task, one in settings.items()}

    async def start(self) -> None:
        """Start the main one, and learn from it what the model takes.

        Raises:
            ModelRuntimeError: the model cannot be opened.
        """
        await self._watches[self.main].start()
        told = await self._get("/props")
        n_ctx = int(told.get("default_generation_settings", {}).get("n_ctx") or self.facts.n_ctx)
        kinds, abilities = told.get("modalities", {}), told.get("chat_template_caps", {})
        self.facts = replace(
            self.facts,
            n_ctx=n_ctx,
            vision=bool(kinds.get("vision")),
            audio=bool(kinds.get("audio")),
            takes_tools=bool(abilities.get("supports_tools") or abilities.get("supports_tool_calls")),
        )

    async def _get(self, path: str) -> dict[str, Any]:
        engine = await self._watches[self.main].engine()
        async with exchange(engine.address, "GET", path) as answer:
            return dict(json.loads(await answer.body()))

    def health(self) -> dict[str, Any]:
        """Whether the engine runs, how often it was started again, and how many requests are answered and wait."""
        return {
            "status": "ok" if self._watches[self.main].running else "restarting",
            "model": self.facts.name,
            "engine_restarts": sum(watch.deaths for watch in self._watches.values()),
            "answering": sum(places.taken for places in self._places.values()),
            "waiting": sum(places.waiting for places in self._places.values()),
        }

    async def close(self) -> None:
        """End all."""
        for watch in self._watches.values():
            await watch.close()

    @asynccontextmanager
    async def ask(
        self, task: Task, path: str, body: dict[str, Any], *, place: bool = True
    ) -> AsyncIterator[EngineAnswer]:
        """The engine's answer, once it has begun; leaving the block hangs up.

        Args:
            task: whose engine.
            path: of the engine's.
            body: checked.
            place: whether it takes one of the slots; without, it is asked at once.

        Raises:
            RequestError: the engine refuses the request, there is none, it died, or too many wait.
        """
        encoded = json.dumps(body).encode()
        if not place:
            async with self._asked(task, path, encoded) as answer:
                yield answer
            return
        async with self._places[task].place(), self._asked(task, path, encoded) as answer:
            yield answer

    @asynccontextmanager
    async def _asked(self, task: Task, path: str, body: bytes) -> AsyncIterator[EngineAnswer]:
        try:
            async with self._reached(task, path, body) as answer:
                if answer.status != 200:
                    raise engine_error(answer.status, await answer.body(), self.secrets)
                yield answer
        except EngineGoneError:
            raise _died() from None
        except EngineDownError as error:
            text = self.secrets.hide(str(error))
            raise RequestError(text, status=503, code="engine_down", retry_after=error.retry_after) from None
        except EdgepackError as error:
            raise RequestError(self.secrets.hide(str(error)), status=503) from error

    async def pieces(self, task: Task, answer: EngineAnswer) -> AsyncIterator[bytes]:
        """The body of an answer as it comes.

        Raises:
            RequestError: the engine died.
        """
        engine = self._watches[task].now
        try:
            async for piece in answer.pieces():
                yield piece
        except EngineGoneError:
            if engine is not None:
                await self._watches[task].noticed(engine)
            raise _died() from None

    @asynccontextmanager
    async def _reached(self, task: Task, path: str, body: bytes) -> AsyncIterator[EngineAnswer]:
        """An engine's answer; one that is found dead is waited for until another has taken its place."""
        watch = self._watches[task]
        await watch.start()
        while True:
            engine = await watch.engine()
            try:
                async with exchange(engine.address, "POST", path, body) as answer:
                    yield answer
                    return
            except EngineUnreachableError:
                await watch.noticed(engine)
            except EngineGoneError:
                await watch.noticed(engine)  # whoever asks after hearing of this asks the next engine
                raise


def _died() -> RequestError:
    return RequestError(_DIED, status=503, code="engine_died", retry_after=_RETRY_SECONDS)
