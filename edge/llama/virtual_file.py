"""A C `FILE *` whose bytes come from Python: llama.cpp reads a model that is not a file of its own.

Where the bytes come from is left to the caller. It needs the C library's `fopencookie` (GNU, musl: Linux).
"""

from __future__ import annotations

import ctypes
import io
import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from edgepack.errors import EdgepackError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_READ = ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_SEEK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int64), ctypes.c_int)
_BUFFER_BYTES = 1 << 16  # headers are read in pieces of a few bytes; longer reads go past the buffer
_FULLY_BUFFERED = 0  # _IOFBF


class _Functions(ctypes.Structure):
    """`cookie_io_functions_t` of stdio.h: read, write, seek, close."""

    _fields_ = (("read", _READ), ("write", ctypes.c_void_p), ("seek", _SEEK), ("close", ctypes.c_void_p))


class RandomReader(Protocol):
    """Bytes that can be read from any place."""

    @property
    def bytes(self) -> int:
        """How many there are."""
        ...

    def read(self, offset: int, size: int) -> memoryview:
        """At most `size` bytes from `offset`; none only at the end."""
        ...


@dataclass
class VirtualFile:
    """An open stream.

    Attributes:
        source: what is read.
        stopped: whether to give up, because a signal came.
        pointer: the `FILE *`.
        problem: what reading raised: C code sees only a failed read, so look here after it gave up.
    """

    source: RandomReader
    stopped: Callable[[], bool] = lambda: False
    pointer: int = 0
    problem: BaseException | None = None
    _position: int = field(default=0, init=False)

    def on_read(self, _cookie: int, target: int, size: int) -> int:
        """As `cookie_read_function_t`: bytes that were put at `target`, 0 at the end, -1 where it failed."""
        if self.stopped():
            return -1
        try:
            piece = self.source.read(self._position, size)
        except (EdgepackError, OSError, MemoryError, KeyboardInterrupt) as error:
            self.problem = error  # nothing may leave a callback of C
            return -1
        count = piece.nbytes
        if count:
            ctypes.memmove(target, (ctypes.c_char * count).from_buffer(_writable(piece)), count)
        self._position += count
        return count

    def on_seek(self, _cookie: int, offset: ctypes._Pointer[ctypes.c_int64], whence: int) -> int:
        """As `cookie_seek_function_t`: 0, and the position from the beginning in `offset`; -1 where there is none."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.source.bytes}.get(whence)
        if base is None or base + offset[0] < 0:
            return -1
        self._position = offset[0] = base + offset[0]
        return 0


def _writable(piece: memoryview) -> memoryview:
    """Ctypes takes the address of writable memory only; decoded chunks are, bytes objects are not."""
    return memoryview(bytearray(piece)) if piece.readonly else piece


def can_open_virtual_files() -> bool:
    """Whether this system's C library can."""
    return os.name == "posix" and hasattr(ctypes.CDLL(None), "fopencookie")


@contextmanager
def virtual_file(source: RandomReader, stopped: Callable[[], bool] = lambda: False) -> Iterator[VirtualFile]:
    """Open `source` for C code to read; closed at the end of the block. Reading fails once `stopped`.

    Raises:
        OSError: the C library cannot open one.
    """
    library = ctypes.CDLL(None, use_errno=True)
    library.fopencookie.restype = ctypes.c_void_p
    library.fopencookie.argtypes = [ctypes.c_void_p, ctypes.c_char_p, _Functions]
    library.setvbuf.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    library.fclose.argtypes = [ctypes.c_void_p]
    opened = VirtualFile(source, stopped)
    buffer = ctypes.create_string_buffer(_BUFFER_BYTES)
    functions = _Functions(read=_READ(opened.on_read), seek=_SEEK(opened.on_seek))
    opened.pointer = library.fopencookie(None, b"rb", functions) or 0
    if not opened.pointer:
        raise OSError(ctypes.get_errno(), "fopencookie failed")
    try:
        library.setvbuf(opened.pointer, buffer, _FULLY_BUFFERED, _BUFFER_BYTES)
        yield opened
    finally:
        library.fclose(opened.pointer)
