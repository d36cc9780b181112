"""The server of `edgepack serve`: where it listens, whom it answers, and how it ends.

A thin front (`front`, behind `guard`) over llama.cpp's server engine in a process of its own (`engine`): a crash of
native code costs the requests that were being answered, not the server.
"""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import socket
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from edgepack.errors import DependencyError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from edgepack.edge.serve.engine.settings import EngineSettings, Task
    from edgepack.edge.serve.protocol.facts import ServedFacts

DRAIN_SECONDS = 30
_BACKLOG = 1024


@dataclass(frozen=True)
class ServerOptions:
    """Where the server listens and whom it answers.

    Attributes:
        host: an address; anything but loopback needs a key.
        port: 0 takes a free one.
        api_key: what clients must send as `Authorization: Bearer KEY`, or None.
        name: of the model in `/v1/models`.
        origins: other websites that may use the server, such as `https://app.example`.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = None
    name: str = "model"
    origins: tuple[str, ...] = ()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_address(options: ServerOptions) -> None:
    """Refuse to serve the network without a key, and origins that are none; raises UsageError."""
    if not is_loopback(options.host) and not options.api_key:
        raise UsageError(f"host '{options.host}': others can reach it; give an --api-key, or listen on 127.0.0.1")
    for origin in options.origins:
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.path or parts.query:
            raise UsageError(f"--allow-origin '{origin}': expected a website's address such as https://app.example")


def bound_socket(options: ServerOptions) -> socket.socket:
    """A socket that listens where the server is to listen; raises UsageError where it cannot."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    # Named, because asyncio switches Nagle's algorithm off only where it sees that it is TCP: 40 ms an answer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((options.host.strip("[]"), options.port))
    except OSError as error:
        listener.close()
        raise UsageError(f"'{options.host}' port {options.port}: cannot listen: {error.strerror}") from error
    listener.listen(_BACKLOG)
    return listener


def serve(
    settings: Mapping[Task, EngineSettings],
    facts: ServedFacts,
    options: ServerOptions,
    listener: socket.socket,
    *,
    note: Callable[[str], object],
    ready: Callable[[ServedFacts], object],
) -> None:
    """Open the model and answer requests until SIGTERM (then it ends, once the answers are out) or Ctrl-C.

    Args:
        settings: of each task's engine.
        facts: of the model.
        options: who is answered.
        listener: from `bound_socket`.
        note: told of what a person would like to know.
        ready: called once requests are answered.

    Raises:
        DependencyError: a package is not installed.
        ModelRuntimeError: the model cannot be opened.
        KeyboardInterrupt: Ctrl-C, once the answers are out.
    """
    try:
        import h11  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise DependencyError(f"serve: {error.name} is not installed: pip install 'edgepack[serve]'") from error
    if asyncio.run(_serve(settings, facts, options, listener, note, ready)):
        raise KeyboardInterrupt


async def _serve(
    settings: Mapping[Task, EngineSettings],
    facts: ServedFacts,
    options: ServerOptions,
    listener: socket.socket,
    note: Callable[[str], object],
    ready: Callable[[ServedFacts], object],
) -> bool:
    """Serve; whether it was Ctrl-C that ended it."""
    from edgepack.edge.serve.engines import Engines
    from edgepack.edge.serve.front import build_app

    engines = Engines(settings, facts, note)
    try:
        await engines.start()
        public = not is_loopback(options.host)
        app = build_app(engines, api_key=options.api_key, any_host=public, origins=frozenset(options.origins))
        ready(engines.facts)
        return await _listen(app, listener)
    finally:
        await engines.close()


async def _listen(app: Any, listener: socket.socket) -> bool:
    import uvicorn

    from edgepack.edge.serve.connections import PatientProtocol, allow_many_files

    class DrainingServer(uvicorn.Server):
        """uvicorn, which lets answers end at a signal, without raising the signal again afterwards."""

        interrupted = False

        def handle_exit(self, sig: int, frame: Any) -> None:
            self.interrupted = self.interrupted or sig == signal.SIGINT
            super().handle_exit(sig, frame)

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    PatientProtocol.most = allow_many_files()
    config = uvicorn.Config(
        app, http=PatientProtocol, ws="none", lifespan="off", loop="asyncio", log_level="error", access_log=False,
        server_header=False, backlog=_BACKLOG, timeout_graceful_shutdown=DRAIN_SECONDS,
    )  # fmt: skip
    server = DrainingServer(config)
    await server.serve(sockets=[listener])
    return server.interrupted
