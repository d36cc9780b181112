"""One engine process: started, ready, and gone; whether another follows is decided in `watch`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from edgepack.edge.serve.engine.exchange import EngineAddress
from edgepack.edge.serve.engine.settings import EngineSettings, to_json
from edgepack.errors import DependencyError, ModelRuntimeError

if TYPE_CHECKING:
    from typing_extensions import Self

_LONGEST_SOCKET_PATH = 100  # sun_path holds 104 (macOS) or 108 bytes
_LOG_LINES, _LOG_LINE = 40, 500
# "0.00.511.419 E srv    load_model: failed to load model": time, level, source, text.
_ERROR_LINE = re.compile(r"^[\d.]+ E \S+\s+(?P<text>.*)$")


class EngineChild:
    """A running engine. `start` makes one; `kill` ends it; `gone` is set when it has ended.

    Its log is kept in memory, the last lines only: what it prints of requests reaches no file and no terminal.
    """

    def __init__(self, process: asyncio.subprocess.Process, folder: Path, secret: str) -> None:
        self.address = EngineAddress("", 0, secret)
        self.gone = asyncio.Event()
        self._process = process
        self._folder = folder
        self._log: deque[str] = deque(maxlen=_LOG_LINES)
        self._tasks = [asyncio.create_task(self._read_log()), asyncio.create_task(self._await_end())]

    @classmethod
    async def start(cls, settings: EngineSettings) -> Self:
        """Start an engine and wait until it is ready.

        Raises:
            ModelRuntimeError: it refuses the model or dies while loading it.
            DependencyError: xllamacpp is not installed.
        """
        folder = Path(tempfile.mkdtemp(prefix="edgepack-"))  # for this user alone
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-X", "utf8", "-m", "edgepack.edge.serve.engine.process",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the front, which lets answers end
        )  # fmt: skip
        child = cls(process, folder, secrets.token_urlsafe(32))
        try:
            await child._open(settings)
        except BaseException:
            await child.kill()
            raise
        return child

    async def _open(self, settings: EngineSettings) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        wanted = str(self._folder / "engine.sock")
        if not hasattr(socket, "AF_UNIX") or sys.platform == "win32" or len(wanted) > _LONGEST_SOCKET_PATH:
            wanted = "127.0.0.1"
        with contextlib.suppress(OSError):
            self._process.stdin.write(f"{to_json(settings, address=wanted, secret=self.address.secret)}\n".encode())
            await self._process.stdin.drain()
        line = await self._process.stdout.readline()
        if not line:
            await self.gone.wait()
            raise ModelRuntimeError(f"{settings.name}: the engine died while loading it ({self.end()}){self._reason()}")
        answer = json.loads(line)
        if "error" in answer:
            await self.gone.wait()
            if answer["missing"]:
                raise DependencyError(f"serve: {answer['error']}: pip install xllamacpp")
            raise ModelRuntimeError(f"{settings.name}: llama.cpp refuses it{self._reason() or ': ' + answer['error']}")
        where = urlsplit(answer["address"])
        path = where.path if where.scheme == "unix" else ""
        self.address = EngineAddress(path, 0 if path else where.port or 0, self.address.secret)

    def end(self) -> str:
        """How it ended, for people."""
        code = self._process.returncode
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                return signal.Signals(-code).name
        return f"exit code {code}"

    def _reason(self) -> str:
        """What its log says of the end: the last error, else nothing."""
        errors = [match["text"] for line in self._log if (match := _ERROR_LINE.match(line))]
        asserted = [line for line in self._log if "GGML_ASSERT" in line]
        found = asserted or errors
        return f": {found[0].strip()}" if found else ""

    async def _read_log(self) -> None:
        assert self._process.stderr is not None
        rest = ""
        while block := await self._process.stderr.read(1 << 16):
            *lines, rest = (rest + block.decode("utf-8", "replace")).split("\n")
            self._log.extend(line[:_LOG_LINE] for line in lines)
            rest = rest[:_LOG_LINE]
        if rest:
            self._log.append(rest)

    async def _await_end(self) -> None:
        await self._process.wait()
        await self._tasks[0]
        shutil.rmtree(self._folder, ignore_errors=True)
        self.gone.set()

    async def kill(self) -> None:
        """End it, at once, and wait for its end."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self.gone.wait()
