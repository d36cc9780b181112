"""Keeps what llama.cpp logs, so that nothing of it reaches the terminal and errors can quote it.

What the lines mean is left to the caller.
"""

from __future__ import annotations

import ctypes
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_KEPT_PIECES = 20_000
_ERROR = 4  # GGML_LOG_LEVEL_ERROR
_CONTINUES = 5  # GGML_LOG_LEVEL_CONT: the text goes on where the piece before it ended


@dataclass
class LogRecording:
    """Log pieces in the order they came, each with llama.cpp's level."""

    pieces: deque[tuple[int, str]] = field(default_factory=lambda: deque(maxlen=_KEPT_PIECES))

    @property
    def text(self) -> str:
        """Everything recorded."""
        return "".join(text for _level, text in self.pieces)

    def last_errors(self, count: int = 2) -> str:
        """The last `count` error lines on one line, or an empty text."""
        lines = [text.strip() for level, text in self.pieces if level == _ERROR and text.strip()]
        return "; ".join(lines[-count:])


class RuntimeLog:
    """llama.cpp's log: the library has one callback a process, so there is one log (`runtime_log`)."""

    def __init__(self) -> None:
        self._recordings: list[LogRecording] = []
        self._level = 0
        self._callback: Any = None  # ctypes keeps no reference: without this one the callback would be freed

    def install(self) -> None:
        """Make llama.cpp and ggml log here."""
        from llama_cpp import llama_cpp

        self._callback = llama_cpp.llama_log_callback(self._receive)
        llama_cpp.llama_log_set(self._callback, ctypes.c_void_p(0))

    @property
    def callback(self) -> Any:
        """What logs here, for libraries beside llama.cpp that have a log of their own."""
        return self._callback

    def _receive(self, level: int, text: bytes, _user_data: object) -> None:
        self._level = self._level if level == _CONTINUES else level
        for recording in self._recordings:
            recording.pieces.append((self._level, text.decode("utf-8", "replace")))

    @contextmanager
    def recording(self) -> Iterator[LogRecording]:
        """Record while the block runs; recordings nest."""
        recording = LogRecording()
        self._recordings.append(recording)
        try:
            yield recording
        finally:
            # By identity: equal recordings (both still empty) must not be taken for each other.
            self._recordings = [other for other in self._recordings if other is not recording]


@cache
def runtime_log() -> RuntimeLog:
    """The process's log, installed at the first call."""
    log = RuntimeLog()
    log.install()
    return log
