"""A server that answers as a script says, in the words of llama.cpp's: for what a real model does only now and then."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from edgepack.edge.serve.page_files import PAGE_HEADERS, page_files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

CONTEXT = 1000
KEY = "a key"


class PageServer:
    """Serves the page; what the last question says decides the answer (see `_Handler.answer`).

    Attributes:
        asked: bodies of the requests for answers, in order.
        left: questions whose client went away before the end.
        go: a `wait` answer continues while it is set.
        key: where not None, who does not send it gets 401.
        vision: what /props tells.
    """

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.left: list[str] = []
        self.go = threading.Event()
        self.key: str | None = None
        self.vision = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.page_server = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def reset(self) -> None:
        """As new, for the next test."""
        self.asked.clear()
        self.left.clear()
        self.go.clear()
        self.key = None
        self.vision = False


class _Handler(BaseHTTPRequestHandler):
    files = page_files()

    @property
    def page_server(self) -> PageServer:
        return self.server.page_server  # type: ignore[attr-defined]

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path in self.files:
            found = self.files[path]
            self._send(200, found.body, {**PAGE_HEADERS, "Content-Type": found.media_type})
        elif not self._has_key():
            self._refuse(401, "Invalid API key", "invalid_api_key")
        elif path == "/v1/models":
            self._json(200, {"object": "list", "data": [{"id": "scripted", "object": "model"}]})
        elif path == "/props":
            settings = {"n_ctx": CONTEXT, "params": {"temperature": 0.8}}
            self._json(
                200, {"default_generation_settings": settings, "modalities": {"vision": self.page_server.vision}}
            )
        else:
            self._refuse(404, "not found", "not_found")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._has_key():
            self._refuse(401, "Invalid API key", "invalid_api_key")
            return
        self.page_server.asked.append(body)
        question = _text(next(m for m in reversed(body["messages"]) if m["role"] == "user"))
        if question.startswith("fail"):
            self._refuse(500, "the model tripped", "server_error")
        elif question.startswith("too long") and len(body["messages"]) > 1:
            self._refuse(400, "the prompt has 2000 tokens", "exceed_context_size_error")
        else:
            self._stream(question, body)

    def _stream(self, question: str, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            for event in self._events(question, body):
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
                self.wfile.flush()
            if not question.startswith("drop"):
                self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.page_server.left.append(question)

    def _events(self, question: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        finish, count = "stop", 0
        if question.startswith("slow"):
            progress = {"total": 200, "cache": 0, "processed": 90, "time_ms": 1}
            yield {"choices": [{"index": 0, "delta": {}, "finish_reason": None}], "prompt_progress": progress}
            self.page_server.go.wait(30)
        for delta in self.answer(question, body):
            if "finish" in delta:
                finish = delta["finish"]
                continue
            count += 1
            yield {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        if question.startswith("drop"):
            return
        prompt = 10 * len(body["messages"])
        total = CONTEXT if finish == "full" else prompt + count
        finish = "length" if finish == "full" else finish
        yield {"choices": [{"index": 0, "delta": {}, "finish_reason": finish, **_verdict(question)}]}
        usage = {"prompt_tokens": prompt, "completion_tokens": count, "total_tokens": total}
        timings = {"predicted_n": count, "predicted_per_second": 12.5}
        yield {"choices": [], "usage": usage, "timings": timings}

    def answer(self, question: str, body: dict[str, Any]) -> Iterator[dict[str, str]]:
        """The deltas of an answer; a `finish` among them says how it ends."""
        if body["messages"][-1]["role"] == "assistant":
            yield {"content": " and the rest."}
        elif question.startswith("wait"):
            yield {"content": f"begun {question}"}
            while not self.page_server.go.wait(0.02):
                yield {"content": "."}
            yield {"content": " ended"}
        elif question.startswith("think"):
            yield from ({"reasoning_content": "Let me "}, {"reasoning_content": "see."}, {"content": "Seen."})
        elif question.startswith("inline"):
            yield from ({"content": piece} for piece in ("<th", "ink>Hidden", " thought</think>", "\n\nPlain answer."))
        elif question.startswith("say "):
            yield from ({"content": piece} for piece in question[4:].splitlines(keepends=True))
        elif question.startswith("long"):
            yield {"content": "\n\n".join(f"Paragraph {number} of many." for number in range(60))}
        else:
            yield {"content": f"An answer to {question}, {len(body['messages'])} messages"}
        for word, end in (("length", "length"), ("full", "full")):
            if question.endswith(word) and body["messages"][-1]["role"] == "user":
                yield {"finish": end}

    def _has_key(self) -> bool:
        key = self.page_server.key
        return key is None or self.headers.get("Authorization") == f"Bearer {key}"

    def _refuse(self, status: int, message: str, code: str) -> None:
        self._json(status, {"error": {"message": message, "code": status, "type": code}})

    def _json(self, status: int, value: object) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _verdict(question: str) -> dict[str, Any]:
    """What a calibrated file says of an answer: where a question wants one, it is "judge" and the verdict as JSON."""
    return {"edgepack": json.loads(question.removeprefix("judge "))} if question.startswith("judge ") else {}


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
