"""Starts and ends xllamacpp's server engine in this process, so that Ctrl-C works before, during and after.

Requests are left to `model`.
"""

from __future__ import annotations

import ctypes
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.edge.llama.engine import StoppedError
from edgepack.edge.llama.server_engine.connection import Endpoint
from edgepack.edge.llama.server_engine.parameters import server_parameters
from edgepack.errors import ModelRuntimeError

if TYPE_CHECKING:
    from edgepack.edge.llama.interrupt import AbortFlag
    from edgepack.edge.llama.options import RuntimeOptions
    from edgepack.gguf.reader import GGUFHeader

_LOOK_SECONDS = 0.05
_REASON_SECONDS = 60


class RunningEngine:
    """An engine with a model in it; `close` ends it.

    Args:
        path: a checked GGUF.
        header: its header.
        options: how to open it.
        abort: setting it meanwhile gives the engine up.

    Raises:
        StoppedError: `abort` was set; loading goes on in a thread that nobody waits for.
        ModelRuntimeError: llama.cpp refuses the file, an adapter or the options; the text says why.
        UsageError: as `server_parameters`.
    """

    def __init__(self, path: Path, header: GGUFHeader, options: RuntimeOptions, abort: AbortFlag) -> None:
        self.endpoint = Endpoint.private()
        self._server: Any = None
        try:
            parameters = server_parameters(path, header, options, self.endpoint.address, self.endpoint.key)
            self._server = _started(parameters, abort)
        except RuntimeError:
            self.endpoint.close()
            raise ModelRuntimeError(f"{path}: llama.cpp refuses it: {_reason(path, options)}") from None
        except BaseException:
            self.endpoint.close()
            raise
        self.endpoint.found_at(self._server.listening_address)
        # Answered by the engine's loop, so that it runs: one that is ended before it began would run for ever, for its
        # beginning undoes the end (server_queue::terminate before server_queue::start_loop in server-queue.cpp).
        self.endpoint.get("/lora-adapters")

    def close(self) -> None:
        """End the engine and free the model; a second call does nothing."""
        self._server = None  # its destructor waits for the loop
        self.endpoint.close()


def _started(parameters: Any, abort: AbortFlag) -> Any:
    """The server, started in a thread: Python sees signals only while the main thread is not inside C++."""
    import xllamacpp

    outcome: list[Any] = []
    handlers = _Handlers()
    done = threading.Event()

    def start() -> None:
        try:
            outcome.append(xllamacpp.Server(parameters))
        except RuntimeError as error:
            outcome.append(error)
        finally:
            handlers.restore()
            done.set()

    threading.Thread(target=start, daemon=True).start()
    while not done.wait(_LOOK_SECONDS):
        if abort:
            raise StoppedError("stopped while the model was being loaded")
    if not outcome or isinstance(outcome[0], RuntimeError):
        raise outcome[0] if outcome else RuntimeError
    return outcome.pop()


class _Handlers:
    """What the process does on SIGINT and SIGTERM, below Python's own bookkeeping.

    llama.cpp's server sets handlers of its own when it has started, which end it behind Python's back and the process
    at the second signal. `signal.signal` could undo that in the main thread only; PyOS_setsig can anywhere.
    """

    _numbers = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        get, self._set = ctypes.pythonapi.PyOS_getsig, ctypes.pythonapi.PyOS_setsig
        get.restype, get.argtypes = ctypes.c_void_p, [ctypes.c_int]
        self._set.restype, self._set.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
        self._before = {number: get(number) for number in self._numbers}

    def restore(self) -> None:
        """Set what was there."""
        for number, handler in self._before.items():
            self._set(number, handler)


def _reason(path: Path, options: RuntimeOptions) -> str:
    """Why llama.cpp refuses a model: a process of its own tries again and is listened to."""
    script = Path(__file__).with_name("refusal.py")
    wish = {
        "path": str(path), "n_ctx": options.n_ctx, "adapters": [str(adapter.path) for adapter in options.adapters],
    }  # fmt: skip
    try:
        told = subprocess.run(
            [sys.executable, "-X", "utf8", str(script), json.dumps(wish)], check=False, timeout=_REASON_SECONDS,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ).stdout.decode("utf-8", "replace")  # fmt: skip
    except subprocess.TimeoutExpired:
        return "no reason given"
    lines = [line.split(": ", 1)[-1] for line in told.splitlines() if "error" in line.lower()]
    return "; ".join(lines[:2]) or "no reason given"
