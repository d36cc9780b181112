"""Arrays by name in files of a folder, read piece by piece where they lie: what passes have changed of a model.

Read and not mapped: pages of a map count as the process's memory for as long as it is open, and a walk over a whole
model would come to hold it. Whose folder it is, and when it goes, is left to the passes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import CheckpointError
from edgepack.files.opened import output_error

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_F32 = "f32"
# How the types lie on disk; bfloat16, which numpy lacks, as its bits.
_ON_DISK = {_F32: np.dtype(np.float32), "f16": np.dtype(np.float16), "bf16": np.dtype(np.uint16)}
_NAMES = {stored: dtype for dtype, stored in _ON_DISK.items()}


@dataclass(frozen=True)
class _Stored:
    """An array in a file.

    Attributes:
        path: of the file.
        dtype: one of `_ON_DISK`.
        shape: of the array, row after row.
        begin: bytes before it.
    """

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int

    def read(self, start: int, count: int) -> NDArray[np.float32]:
        """`count` weights from number `start` on; owned by the caller.

        Raises:
            CheckpointError: the file has become shorter.
        """
        found = np.fromfile(self.path, self.dtype, count, offset=self.begin + start * self.dtype.itemsize)
        if len(found) != count:
            raise CheckpointError(f"{self.path}: expected {count} weights behind {start}, file ends after {len(found)}")
        return _widened(found)


class ArrayFolder(Mapping[str, "NDArray[np.float32]"]):
    """Arrays by name that lie in files; none of them is in memory. Reading is thread-safe.

    Args:
        folder: made when needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._paths: dict[str, Path] = {}
        self._headers: dict[str, _Stored] = {}
        self.files: list[tuple[str, str]] = []  # (name, file in the folder) of each array, in order

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the files anew, under the same names."""
        return _reopened, (self._folder, tuple(self.files))

    def put(self, name: str, array: NDArray[np.float32], dtype: str = _F32) -> None:
        """Keep a copy of `array` under `name`: in `dtype` (a source's type) where that holds every weight exactly.

        Raises:
            ResourceError: the disk is full.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        stored = np.asarray(_exactly(array, dtype), order="C")
        file = f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)[-200:]}-{len(self.files)}.npy"
        try:
            with (self._folder / file).open("wb") as stream:  # not `np.save`, whose error of a full disk has no number
                np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(stored))
                stream.write(stored.data)
        except OSError as error:
            raise output_error(self._folder / file, error) from error
        self._add(name, file)

    def reopen(self, files: Sequence[tuple[str, str]]) -> None:
        """Take up arrays that an earlier run has put there: its `files`. Each is opened when it is asked for."""
        for name, file in files:
            self._add(name, file)

    def _add(self, name: str, file: str) -> None:
        self._paths[name] = self._folder / file
        self._headers.pop(name, None)
        self.files.append((name, file))

    def _stored(self, name: str) -> _Stored:
        found = self._headers.get(name)
        if found is None:
            found = self._headers[name] = _read_header(self._paths[name])
        return found

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        stored = self._stored(name)
        return stored.read(0, prod(stored.shape)).reshape(stored.shape)

    def __contains__(self, name: object) -> bool:
        return name in self._paths  # Mapping's own would read the array

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `start` (included) to `stop` (not included) of an array seen as a matrix; owned by the caller."""
        stored = self._stored(name)
        columns = stored.shape[-1] if stored.shape else 1
        return stored.read(start * columns, (stop - start) * columns).reshape(stop - start, columns)

    def stored_dtype(self, name: str) -> str:
        """How an array lies on disk: `f32`, or `f16` or `bf16` where that holds it exactly."""
        return _NAMES[self._stored(name).dtype]

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


def _reopened(folder: Path, files: Sequence[tuple[str, str]]) -> ArrayFolder:
    """An array folder that another process has filled."""
    found = ArrayFolder(folder)
    found.reopen(files)
    return found


def _read_header(path: Path) -> _Stored:
    """What a file says of its array; raises CheckpointError where it is none of this folder's."""
    try:
        with path.open("rb") as stream:
            np.lib.format.read_magic(stream)
            shape, by_columns, dtype = np.lib.format.read_array_header_1_0(stream)
            begin = stream.tell()
    except ValueError as error:
        raise CheckpointError(f"{path}: expected weights that a pass has kept: {error}") from None
    if by_columns or dtype not in _NAMES:
        raise CheckpointError(f"{path}: expected weights that a pass has kept, got {dtype}")
    return _Stored(path, dtype, shape, begin)


def _exactly(array: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """`array` in two bytes a weight where `dtype` has those and nothing is lost; itself otherwise."""
    if dtype == _F32 or dtype not in _ON_DISK:
        return array
    bits = np.ascontiguousarray(array).view(np.uint32)
    if dtype == "bf16":
        return array if (bits & 0xFFFF).any() else (bits >> 16).astype(np.uint16)
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), array) else array


def _widened(stored: NDArray[Any]) -> NDArray[np.float32]:
    """float32 of what lies on disk."""
    if stored.dtype == np.uint16:
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32, copy=False)
