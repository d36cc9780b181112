"""Ctrl-C reaches llama.cpp while it computes: a flag that its threads read, set from a signal.

Python handles signals between bytecodes only, and evaluating a long prompt is one call that may take minutes. The
interpreter's own C handler does write a byte to a descriptor at once; a thread reads it and sets the flag.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_HELD = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class AbortFlag:
    """A flag that llama.cpp's abort callback reads without entering Python.

    The callback is C's `strlen` itself: called with the address of this two-byte buffer it returns 0 while the first
    byte is zero (go on) and 1 once it is set (stop), which is exactly `bool (*)(void *)`. A Python callback would be
    called once for each operation of the graph and would slow small models by a third.
    """

    def __init__(self) -> None:
        self._bytes = ctypes.create_string_buffer(2)
        library = ctypes.CDLL("msvcrt") if sys.platform == "win32" else ctypes.CDLL(None)
        self._function: Any = library.strlen
        self._also: list[Callable[[], object]] = []

    def install(self, context_parameters: Any) -> None:
        """Make `llama_context_params` use the flag, which must outlive the context."""
        kind = type(context_parameters.abort_callback)
        context_parameters.abort_callback = ctypes.cast(self._function, kind)
        context_parameters.abort_callback_data = ctypes.cast(self._bytes, ctypes.c_void_p)

    def set(self) -> None:
        """Stop what is being computed, and what would be computed next."""
        self._bytes[0] = b"\x01"
        for action in list(self._also):
            action()

    @contextlib.contextmanager
    def also(self, action: Callable[[], object]) -> Iterator[None]:
        """While the block runs, setting the flag does `action` too (any thread may, and a signal handler)."""
        self._also.append(action)
        try:
            yield
        finally:
            self._also.remove(action)

    def clear(self) -> None:
        """Let computing go on."""
        self._bytes[0] = b"\x00"

    def __bool__(self) -> bool:
        return bool(self._bytes[0] != b"\x00")


class HeldSignals:
    """Signals that came while C code ran."""

    def __init__(self, flag: AbortFlag | None) -> None:
        self._flag = flag
        self.numbers: list[int] = []

    def receive(self, number: int, _frame: object) -> None:
        """As a signal's handler: note it, and stop what is being computed."""
        self.numbers.append(number)
        if self._flag is not None:
            self._flag.set()

    def __bool__(self) -> bool:
        return bool(self.numbers)


@contextlib.contextmanager
def held_signals(flag: AbortFlag | None = None) -> Iterator[HeldSignals]:
    """Hold back what would be raised by a signal until the block ends; meanwhile it only sets `flag`.

    Around every call of C code that calls back into Python: an exception that a signal raises inside such a callback
    is swallowed by ctypes, and what was computed then is wrong without anybody noticing. Outside the main thread no
    signal is handled, and there is nothing to hold.

    Raises:
        KeyboardInterrupt, SystemExit: at the end of the block, as the handlers that stood before raise them.
    """
    held = HeldSignals(flag)
    if threading.current_thread() is not threading.main_thread():
        yield held
        return
    previous = {number: handler for number in _HELD if callable(handler := signal.getsignal(number))}
    try:
        for number in previous:
            signal.signal(number, held.receive)
        yield held
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for number in held.numbers[:1]:
            previous[number](number, None)


@contextlib.contextmanager
def ctrl_c_sets(flag: AbortFlag) -> Iterator[None]:
    """While the block runs, Ctrl-C sets `flag` and nothing else; outside the main thread it does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = _signal_pipe()
    previous_descriptor = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    previous_handler = signal.signal(signal.SIGINT, lambda _number, _frame: flag.set())
    watcher = threading.Thread(target=_watch, args=(reader, flag), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous_handler)
        signal.set_wakeup_fd(previous_descriptor)
        os.close(writer)  # ends the watcher
        watcher.join()
        os.close(reader)


def _signal_pipe() -> tuple[int, int]:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    return reader, writer


def _watch(reader: int, flag: AbortFlag) -> None:
    while numbers := os.read(reader, 64):
        if signal.SIGINT in numbers:
            flag.set()
