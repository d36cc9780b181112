"""How answers are sent, whole, streamed or refused, and how a client that leaves ends the work for it."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, TypeVar

from edgepack.edge.serve.bodies import drain
from edgepack.edge.serve.protocol.errors import RequestError, error_document
from edgepack.edge.serve.protocol.events import Event

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

    Message = dict[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

T = TypeVar("T")
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Do the work; when the client leaves meanwhile, it is cancelled.

    Raises:
        ClientGoneError: the client left.
    """
    task = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        for pending in (task, left):
            pending.cancel()
        await asyncio.gather(task, left, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def send_json(send: Send, value: Any, status: int = 200, headers: list[tuple[str, str]] | None = None) -> None:
    """A whole answer."""
    await send(_start(value_bytes := json.dumps(value, ensure_ascii=False).encode(), status, headers or []))
    await send({"type": "http.response.body", "body": value_bytes})


def _start(body: bytes, status: int, more: list[tuple[str, str]]) -> Message:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in more]
    return {"type": "http.response.start", "status": status, "headers": headers}


async def send_error(path: str, send: Send, error: RequestError, receive: Receive | None = None) -> None:
    """An error, in the form that clients of `path` expect.

    Args:
        path: that was asked.
        send: to the client.
        error: what is wrong.
        receive: given where the body was not read: the connection is then closed after it.
    """
    body = json.dumps(error_document(path, error), ensure_ascii=False).encode()
    headers = error.headers if receive is None else [*error.headers, ("Connection", "close")]
    await send(_start(body, error.status, headers))
    await send({"type": "http.response.body", "body": body, "more_body": receive is not None})
    if receive is not None:
        await drain(receive)
        await send({"type": "http.response.body", "body": b""})


async def send_stream(path: str, send: Send, events: AsyncIterator[Event], *, done: bool) -> None:
    """A stream of events; an error in the middle becomes the last of them.

    Args:
        path: that was asked.
        send: to the client.
        events: what to send; the head goes out with the first of them, so that an error before it has its status.
        done: whether the stream ends with OpenAI's `[DONE]`.
    """
    begun = False
    try:
        async for event in events:
            if not begun:
                await send({"type": "http.response.start", "status": 200, "headers": list(_STREAM_HEADERS)})
                begun = True
            await _send_piece(send, event.encode())
    except RequestError as error:
        if not begun:
            raise
        document = json.dumps(error_document(path, error), ensure_ascii=False)
        name = "error" if path in ("/v1/messages", "/v1/responses") else ""
        await _send_piece(send, Event(document, name).encode())
    else:
        if not begun:
            await send({"type": "http.response.start", "status": 200, "headers": list(_STREAM_HEADERS)})
        if done:
            await _send_piece(send, Event("[DONE]").encode())
    await send({"type": "http.response.body", "body": b""})


async def _send_piece(send: Send, piece: bytes) -> None:
    await send({"type": "http.response.body", "body": piece, "more_body": True})
