"""The application: which path is answered by what. Bodies are checked in `protocol`, answered by `engines`.

`/health` needs no engine, no key and no body: it answers whatever else goes on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from edgepack.edge.serve.answers import ClientGoneError, send_error, send_json, send_stream, unless_gone
from edgepack.edge.serve.bodies import MOST_PICTURES, MOST_TEXT, BodyReader
from edgepack.edge.serve.generations import GENERATIONS, Asked
from edgepack.edge.serve.guard import Access, RequestGuard
from edgepack.edge.serve.page_files import PAGE_HEADERS, page_files
from edgepack.edge.serve.protocol import embeddings, requests
from edgepack.edge.serve.protocol.confidence import verdict_headers
from edgepack.edge.serve.protocol.errors import RequestError
from edgepack.edge.serve.told import model_object, models_object, props_object

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from edgepack.edge.serve.engine.settings import Task
    from edgepack.edge.serve.engines import Engines
    from edgepack.edge.serve.protocol.requests import Check

    Message = dict[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]


@dataclass(frozen=True)
class Question:
    """A path with one whole answer.

    Attributes:
        check: of its body.
        engine_path: what the engine is asked.
    """

    check: Check
    engine_path: str


QUESTIONS = {
    "/v1/messages/count_tokens": Question(requests.check_anthropic_prompt, "/v1/messages/count_tokens"),
    "/tokenize": Question(requests.check_tokenize, "/tokenize"),
    "/detokenize": Question(requests.check_detokenize, "/detokenize"),
    "/apply-template": Question(requests.check_template, "/apply-template"),
}
# Other spellings of the same, as llama.cpp's own server and the bindings' server have them.
SPELLINGS = {
    "/chat/completions": "/v1/chat/completions",
    "/completions": "/v1/completions",
    "/responses": "/v1/responses",
    "/embeddings": "/v1/embeddings",
    "/rerank": "/v1/rerank",
    "/reranking": "/v1/rerank",
    "/v1/reranking": "/v1/rerank",
    "/models": "/v1/models",
    "/v1/health": "/health",
}


class Front:
    """The ASGI application behind the guard."""

    def __init__(self, engines: Engines) -> None:
        self._engines = engines
        facts = engines.facts
        self._bodies = BodyReader(MOST_PICTURES if facts.vision or facts.audio else MOST_TEXT)
        self._pages = page_files()

    def public(self, path: str) -> bool:
        """Whether a path is answered without a key: the page, which asks for the key itself, and whether we live."""
        return path in self._pages or SPELLINGS.get(path, path) == "/health"

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path = str(SPELLINGS.get(scope["path"], scope["path"]))
        try:
            if scope["method"] in ("GET", "HEAD"):
                await self._get(path, scope, send)
            else:
                await self._post(path, scope, receive, send)
        except RequestError as error:
            await send_error(path, send, error, receive)
        except ClientGoneError:
            return

    async def _get(self, path: str, scope: Message, send: Send) -> None:
        engines = self._engines
        if path == "/health":
            await send_json(send, engines.health())
        elif path == "/v1/models":
            await send_json(send, models_object(engines.facts))
        elif path.startswith("/v1/models/"):
            await self._model(path.removeprefix("/v1/models/"), send)
        elif path == "/props":
            await send_json(send, props_object(engines.facts))
        elif path in self._pages:
            await self._page(path, Request(scope).headers.get("if-none-match"), send)
        else:
            raise _unknown(path, post=path in GENERATIONS or path in QUESTIONS)

    async def _model(self, name: str, send: Send) -> None:
        facts = self._engines.facts
        if name != facts.name:
            text = f"model '{name[:80]}': this server has '{facts.name}' alone"
            raise RequestError(text, "model", status=404, code="model_not_found")
        await send_json(send, model_object(facts))

    async def _page(self, path: str, known: str | None, send: Send) -> None:
        found = self._pages[path]
        headers = [*PAGE_HEADERS.items(), ("ETag", found.etag), ("Content-Type", found.media_type)]
        status, body = (304, b"") if known == found.etag else (200, found.body)
        if status == 200:
            headers.append(("Content-Length", str(len(body))))
        encoded = [(name.lower().encode(), value.encode()) for name, value in headers]
        await send({"type": "http.response.start", "status": status, "headers": encoded})
        await send({"type": "http.response.body", "body": body})

    async def _post(self, path: str, scope: Message, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            raise RequestError(f"{scope['method'][:20]}: expected GET or POST", status=405)
        answer = self._answer_of(path)
        if answer is None:
            raise _unknown(path, post=True)
        async with self._bodies.read(Request(scope, receive)) as body:
            try:
                await answer(path, body, receive, send)
            except RequestError as error:  # the body was read: the connection can be kept
                await send_error(path, send, error)

    def _answer_of(self, path: str) -> Callable[[str, Message, Receive, Send], Awaitable[None]] | None:
        if path in GENERATIONS:
            return self._generate
        if path in QUESTIONS:
            return self._question
        return {"/v1/embeddings": self._embeddings, "/v1/rerank": self._rerank}.get(path) or self._extra_of(path)

    def _extra_of(self, path: str) -> Callable[[str, Message, Receive, Send], Awaitable[None]] | None:
        """The extras of llama-cpp-python's server, which `edgepack serve` had before."""
        extras = {
            "/extras/tokenize": self._tokenize,
            "/extras/tokenize/count": self._tokenize,
            "/extras/detokenize": self._detokenize,
        }
        return extras.get(path)

    async def _generate(self, path: str, body: Message, receive: Receive, send: Send) -> None:
        engines = self._engines
        if "text" not in engines.facts.tasks:
            raise RequestError(f"model: '{engines.facts.name}' generates no text", "model")
        asked = Asked(path, body, engines.facts)

        async def work() -> None:
            async with engines.ask("text", asked.engine_path, asked.body) as answer:
                pieces = engines.pieces("text", answer)
                if asked.streamed:
                    await send_stream(path, send, asked.events(pieces, engines.secrets), done=asked.done)
                    return
                async for name, value in asked.answer(pieces, engines.secrets):
                    asked.whole.add(name, value)
            result = asked.whole.result()
            await send_json(send, result, headers=verdict_headers(result))

        await unless_gone(receive, work())

    async def _ask(self, path: str, body: Message, receive: Receive, task: Task, *, place: bool = True) -> Message:
        async def work() -> Message:
            async with self._engines.ask(task, path, body, place=place) as answer:
                return dict(json.loads(await answer.body()))

        return await unless_gone(receive, work())

    async def _question(self, path: str, body: Message, receive: Receive, send: Send) -> None:
        question = QUESTIONS[path]
        question.check(body, self._engines.facts)
        main = self._engines.main
        await send_json(send, await self._ask(question.engine_path, body, receive, main, place=False))

    async def _embeddings(self, path: str, body: Message, receive: Receive, send: Send) -> None:
        facts = self._engines.facts
        wanted = embeddings.engine_request(body, facts)
        told = await self._ask(path, wanted, receive, "embedding")
        await send_json(send, embeddings.answer(told, body, facts))

    async def _rerank(self, path: str, body: Message, receive: Receive, send: Send) -> None:
        requests.check_rerank(body, self._engines.facts)
        told = await self._ask(path, body, receive, "rerank")
        await send_json(send, {**told, "model": self._engines.facts.name})

    async def _tokenize(self, path: str, body: Message, receive: Receive, send: Send) -> None:
        body = {"content": body.get("input"), "add_special": True, "parse_special": True}
        try:
            requests.check_tokenize(body, self._engines.facts)
        except RequestError as error:
            raise RequestError(str(error).replace("content", "input", 1), "input") from None
        told = await self._ask("/tokenize", body, receive, self._engines.main, place=False)
        tokens = told["tokens"]
        await send_json(send, {"count": len(tokens)} if path.endswith("count") else {"tokens": tokens})

    async def _detokenize(self, path: str, body: Message, receive: Receive, send: Send) -> None:
        del path
        requests.check_detokenize(body, self._engines.facts)
        told = await self._ask("/detokenize", body, receive, self._engines.main, place=False)
        await send_json(send, {"text": told["content"]})


def _unknown(path: str, *, post: bool) -> RequestError:
    if post and path in {*GENERATIONS, *QUESTIONS, "/v1/embeddings", "/v1/rerank"}:
        return RequestError(f"{path}: expected POST", status=405)
    return RequestError(f"{path[:80]}: there is nothing here", status=404)


def build_app(engines: Engines, *, api_key: str | None, any_host: bool, origins: frozenset[str]) -> RequestGuard:
    """The application with its guard; see `Access` for what the arguments mean."""
    front = Front(engines)
    return RequestGuard(front, Access(api_key, any_host, origins, front.public))
