"""An OpenAI-compatible server on this machine: llama-cpp-python's own routes over a model that edgepack opened.

It adds what a local server needs and that one lacks: the model's template in a sandbox, errors before a stream
begins, no access for other websites, a page to chat in. Choosing how to open the model is left to `opening`.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepack.edge.chat.template import special_tokens, stop_texts
from edgepack.edge.llama.handles import open_bindings
from edgepack.edge.serve.guard import RequestGuard
from edgepack.edge.serve.page_files import PAGE_HEADERS, page_files
from edgepack.errors import DependencyError, EdgepackError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edgepack.edge.chat.template import ChatTemplate
    from edgepack.edge.install.model_file import ModelFile
    from edgepack.edge.llama.options import RuntimeOptions


@dataclass(frozen=True)
class ServerOptions:
    """Where the server listens and whom it answers.

    Attributes:
        host: an address; anything but loopback needs a key.
        port: 0 takes a free one.
        api_key: what clients must send as `Authorization: Bearer KEY`, or None.
        name: of the model in `/v1/models`.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = None
    name: str = "model"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_address(options: ServerOptions) -> None:
    """Refuse to serve the network without a key; raises UsageError."""
    if not is_loopback(options.host) and not options.api_key:
        raise UsageError(f"host '{options.host}': others can reach it; give an --api-key, or listen on 127.0.0.1")


class ServedModel:
    """What llama-cpp-python's routes ask for a model: always the one, under whatever name a client sends.

    Args:
        source: the model.
        options: how to open it.
        template: for chats; None where the model has none, then chats are refused and completions work.
        name: in `/v1/models`.

    Raises:
        ModelRuntimeError: llama.cpp refuses it.
    """

    def __init__(self, source: ModelFile, options: RuntimeOptions, template: ChatTemplate | None, name: str) -> None:
        self.name = name
        self._template = template
        self.llama, self._adapters = open_bindings(source.path, options, _chat_handler(self, source))

    def __call__(self, _model: str | None = None) -> Any:
        """The model."""
        return self.llama

    def __iter__(self) -> Iterator[str]:
        """Names of the models."""
        return iter([self.name])

    def prompt(self, messages: list[dict[str, Any]]) -> str:
        """The text that the model is to answer.

        Raises:
            UsageError: the model has no template.
            TemplateError: the template refuses the messages.
        """
        if self._template is None:
            raise UsageError("chat template: the model has none; serve it with --template NAME, or use completions")
        return self._template.render([_plain(message) for message in messages])

    @property
    def stops(self) -> list[str]:
        """Texts that end an answer."""
        return stop_texts(self._template) if self._template is not None else []

    def close(self) -> None:
        """Free the model."""
        self.llama.close()


def _chat_handler(model: ServedModel, source: ModelFile) -> Callable[..., Any]:
    """llama-cpp-python's chat completion over edgepack's template."""
    from llama_cpp import llama_chat_format as chat_format

    special, stops = special_tokens(source.header), model.stops

    def form(*, messages: list[dict[str, Any]], **_options: Any) -> Any:
        prompt = model.prompt(messages)
        has_bos = bool(special.bos) and prompt.startswith(special.bos)
        return chat_format.ChatFormatterResponse(prompt=prompt, stop=stops, added_special=has_bos)

    handler: Callable[..., Any] = chat_format.chat_formatter_to_chat_completion_handler(form)
    return handler


def _plain(message: dict[str, Any]) -> dict[str, str]:
    """A message whose content is text: the text parts of a list, joined."""
    content = message.get("content") or ""
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content if part.get("type") == "text")
    return {"role": str(message.get("role", "user")), "content": str(content)}


def build_app(model: ServedModel, options: ServerOptions) -> Any:
    """The ASGI application.

    Raises:
        DependencyError: the packages of `edgepack[serve]` are not installed.
        UsageError: a public address without a key.
    """
    check_address(options)
    try:
        from fastapi import FastAPI
        from llama_cpp.server import app as routes
        from llama_cpp.server.settings import ServerSettings
        from starlette.middleware import Middleware
        from starlette_context.middleware import RawContextMiddleware
        from starlette_context.plugins import RequestIdPlugin
    except ImportError as error:
        raise DependencyError(f"serve: {error.name} is not installed: pip install 'edgepack[serve]'") from error
    routes.set_server_settings(ServerSettings(api_key=options.api_key))
    routes._llama_proxy = model  # noqa: SLF001 - the routes' own place for it; its setter would load another model
    guard = Middleware(RequestGuard, model=model, api_key=options.api_key, any_host=not is_loopback(options.host))
    context = Middleware(RawContextMiddleware, plugins=(RequestIdPlugin(),))
    app = FastAPI(title="edgepack", docs_url=None, redoc_url=None, middleware=[guard, context])
    _add_own_routes(app, model, routes)
    app.include_router(routes.router)
    return app


def _add_own_routes(app: Any, model: ServedModel, routes: Any) -> None:
    """Embeddings, what the model is, its health and the page; what is added first is found first."""
    from fastapi import Depends
    from fastapi.concurrency import run_in_threadpool
    from fastapi.responses import JSONResponse

    from edgepack.edge.serve.embeddings import answer

    async def embeddings(
        request: dict[str, Any],
        _lock: Any = Depends(routes.get_llama_proxy),  # noqa: B008 - FastAPI's way to say it
    ) -> Any:
        try:
            return await run_in_threadpool(answer, model, request)
        except EdgepackError as error:
            body = {"message": str(error), "type": "invalid_request_error", "param": "input", "code": None}
            return JSONResponse({"error": body}, status_code=400)

    def props() -> dict[str, Any]:
        return {"default_generation_settings": {"n_ctx": model.llama.n_ctx()}, "modalities": {"vision": False}}

    def health() -> dict[str, str]:
        return {"status": "ok", "model": model.name}

    key = [Depends(routes.authenticate)]
    app.add_api_route("/v1/embeddings", embeddings, methods=["POST"], dependencies=key, response_model=None)
    app.add_api_route("/props", props, methods=["GET"], dependencies=key)
    app.add_api_route("/health", health, methods=["GET"])
    _add_page(app)


def _add_page(app: Any) -> None:
    """The chat page, which anybody may read: what it asks for needs the key."""
    from fastapi import Request, Response

    files = page_files()

    def page(request: Request) -> Response:
        found = files[request.url.path]
        headers = {**PAGE_HEADERS, "ETag": found.etag}
        if request.headers.get("if-none-match") == found.etag:
            return Response(status_code=304, headers=headers)
        return Response(found.body, media_type=found.media_type, headers=headers)

    page.__annotations__ = {"request": Request, "return": Response}  # FastAPI looks for names at the module's top
    for path in files:
        app.add_api_route(path, page, methods=["GET"], response_class=Response)


def bound_socket(options: ServerOptions) -> socket.socket:
    """A socket that listens where the server is to listen; raises UsageError where it cannot."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((options.host.strip("[]"), options.port))
    except OSError as error:
        listener.close()
        raise UsageError(f"'{options.host}' port {options.port}: cannot listen: {error.strerror}") from error
    listener.listen(128)
    return listener


def serve(app: Any, listener: socket.socket) -> None:
    """Answer requests until Ctrl-C."""
    import uvicorn

    uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off")).run(sockets=[listener])
