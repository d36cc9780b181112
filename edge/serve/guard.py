"""Looks at each request before llama-cpp-python's routes do: who asks, and whether the prompt can fit at all.

A prompt that is too long must be an error even where the answer would be streamed: once a stream has begun no
status can be sent any more. What is answered is left to the routes.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from edgepack.errors import EdgepackError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from edgepack.edge.serve.server import ServedModel

    Message = dict[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

_MOST_BODY = 64 << 20
_LOCAL = {"localhost", "127.0.0.1", "::1"}


class _RefusalError(Exception):
    """A request that is answered with an error at once."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class RequestGuard:
    """ASGI middleware.

    Args:
        app: what comes after it.
        model: whose context and vocabulary decide what fits.
        api_key: kept here only to know whether strangers are kept out by it.
        any_host: the server is public, so it may be called by any name.
    """

    def __init__(self, app: Any, *, model: ServedModel, api_key: str | None, any_host: bool) -> None:
        self._app = app
        self._model = model
        self._api_key = api_key
        self._any_host = any_host

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with an error in OpenAI's form."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check_origin(_headers(scope))
            if scope["method"] == "POST" and self._may_ask(scope):
                receive = await self._checked(scope["path"], receive)
        except _RefusalError as refusal:
            await _refuse(send, refusal)
            return
        await self._app(scope, receive, send)

    def _check_origin(self, headers: Mapping[str, str]) -> None:
        """Other websites may not use this server through their visitors' browsers, by whatever name they call it."""
        host = urlsplit(f"//{headers.get('host', '')}").hostname
        if not self._any_host and host not in _LOCAL:
            raise _RefusalError(403, f"host {host!r}: this server answers to localhost only")
        origin = headers.get("origin")
        if origin and urlsplit(origin).netloc != headers.get("host"):
            raise _RefusalError(403, f"origin {origin!r}: other websites may not use this server")

    def _may_ask(self, scope: Message) -> bool:
        """Whether the caller has the key: who has not is refused by the routes, and learns nothing here."""
        return self._api_key is None or _headers(scope).get("authorization") == f"Bearer {self._api_key}"

    async def _checked(self, path: str, receive: Receive) -> Receive:
        """Read the body, check it, and give back a `receive` that tells it again."""
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > _MOST_BODY:
                raise _RefusalError(413, f"expected a body of at most {_MOST_BODY} bytes")
            if not message.get("more_body"):
                break
        self._check_prompt(path, body)
        told = False

        async def again() -> Message:
            nonlocal told
            if told:
                return await receive()
            told = True
            return {"type": "http.request", "body": body, "more_body": False}

        return again

    def _check_prompt(self, path: str, body: bytes) -> None:
        try:
            request = json.loads(body)
        except ValueError:
            return  # the routes say what is wrong with it
        if not isinstance(request, dict):
            return
        if path == "/v1/chat/completions":
            self._check_length(self._chat_tokens(request.get("messages")))
        elif path == "/v1/completions":
            prompt = request.get("prompt")
            prompt = prompt[0] if isinstance(prompt, list) and len(prompt) == 1 else prompt
            if isinstance(prompt, str):
                self._check_length(len(self._model.llama.tokenize(prompt.encode(), special=True)))

    def _chat_tokens(self, messages: Any) -> int:
        if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
            raise _RefusalError(400, "messages: expected a list of objects with role and content")
        try:
            prompt = self._model.prompt(messages)
        except EdgepackError as error:
            raise _RefusalError(400, str(error)) from error
        return len(self._model.llama.tokenize(prompt.encode(), special=True))

    def _check_length(self, tokens: int) -> None:
        most = self._model.llama.n_ctx()
        if tokens >= most:
            text = f"the prompt has {tokens} tokens, the context holds {most}"
            raise _RefusalError(400, text, "context_length_exceeded")


def _headers(scope: Message) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


async def _refuse(send: Send, refusal: _RefusalError) -> None:
    error = {"message": str(refusal), "type": "invalid_request_error", "param": None, "code": refusal.code}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
