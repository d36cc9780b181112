"""Joins a Ray cluster, within a time limit and without a word of Ray's own; what is asked of it is `ray_backend`'s.

Ray is imported here, and only when a cluster is asked for.
"""

from __future__ import annotations

import io
import logging
import os
import socket
import sys
import threading
from contextlib import contextmanager, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any, TextIO, cast

from edgepack.errors import DependencyError, NetworkError, UsageError
from edgepack.log_level import log_level
from edgepack.pipeline.cluster.ray_backend import RayBackend

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS = 20.0  # for something to answer at the address
_JOIN_SECONDS = 120.0  # for what speaks as Ray does to let this process join: a busy machine is no failure
_LOGGED = logging.ERROR  # losses are told by who asks again
AUTO = "auto"  # the cluster that runs on this machine
_FRAME_BYTES, _SETTINGS_FRAME = 9, 4  # the head of a frame of HTTP/2, its type at byte 3


@contextmanager
def connected(address: str, seconds: float = SECONDS) -> Iterator[RayBackend]:
    """The cluster at an address, left again at the end; a process that is connected already stays so.

    Args:
        address: `auto` for the one that runs on this machine, or `HOST:PORT` of a head.
        seconds: that something may take to answer there.

    Raises:
        DependencyError: ray is not installed.
        UsageError: no address.
        NetworkError: no cluster there.
    """
    ray = _ray()
    if ray.is_initialized():
        yield RayBackend(ray)
        return
    found = _checked(address, seconds)
    with log_level("ray", _LOGGED), redirect_stdout(cast("TextIO", Silenced(sys.stdout))):
        _connect(ray, found, _JOIN_SECONDS)
        try:
            yield RayBackend(ray)
        finally:
            with redirect_stdout(io.StringIO()):  # what it has held back of dead workers comes in this thread
                ray.shutdown()


class Silenced:
    """Standard output without what Ray's own threads print of every dead worker: losses are told by who asks again.

    Standard output is JSON's alone here, and Ray has no setting for it.

    Args:
        stream: takes all the rest.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """As the stream's, but from threads that Ray has named."""
        return len(text) if threading.current_thread().name.startswith("ray_") else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ModuleNotFoundError:
        raise DependencyError("--cluster: 'ray' is not installed, use pip install 'edgepack[cluster]'") from None
    return ray


def _checked(address: str, seconds: float) -> str:
    """The address, where something listens there that may be a head."""
    if address == AUTO:
        return address  # Ray knows what runs here
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise UsageError(f"--cluster: expected auto or HOST:PORT, got '{address}'")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=seconds) as listening:
            known = _speaks_http2(listening)
    except (OSError, UnicodeError) as error:
        reason = "no answer" if isinstance(error, TimeoutError) else getattr(error, "strerror", None) or error
        raise NetworkError(f"cluster '{address}': {reason}, within {seconds:.0f} seconds") from None
    if not known:
        raise NetworkError(f"cluster '{address}': what listens there does not answer as Ray does")
    return address


def _speaks_http2(listening: socket.socket) -> bool:
    """Whether what listens answers the opening of HTTP/2 with settings, as every gRPC server does (RFC 9113, 3.4).

    Ray asks again and again what answers nothing, beyond any limit it is given.
    """
    head = b""
    with suppress(ConnectionError):  # it hangs up on what it does not understand
        listening.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, _SETTINGS_FRAME, 0, 0, 0, 0, 0]))
        while len(head) < _FRAME_BYTES and (more := listening.recv(_FRAME_BYTES - len(head))):
            head += more
    return len(head) == _FRAME_BYTES and head[3] == _SETTINGS_FRAME


def _connect(ray: Any, address: str, seconds: float) -> None:
    """Join the cluster; in a thread, as Ray waits long for a head that speaks and does not answer."""
    failures: list[BaseException] = []

    def join() -> None:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError, ray.exceptions.RayError) as error:
            failures.append(error)

    thread = threading.Thread(target=join, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise NetworkError(f"cluster '{address}': what listens there does not answer as Ray does")
    if failures:
        if address == AUTO and isinstance(failures[0], ConnectionError):
            raise NetworkError("cluster 'auto': none runs on this machine: start one with 'ray start --head'")
        first = str(failures[0]).strip().splitlines() or [type(failures[0]).__name__]
        raise NetworkError(f"cluster '{address}': {first[0]}")
