"""Hessians on disk, so that of a whole model's only those at work are in memory: at 8 B parameters they are 33 GB.

Which are kept, and when their folder goes, is left to the callers.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import CalibrationError, ResourceError
from edgepack.files.opened import output_error
from edgepack.quantities import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.quant.calibration.statistics import LinearStatistics

STRIP = 256  # rows of a symmetric matrix at a time, from their diagonal on: what is below is its mirror image


@dataclass(frozen=True, eq=False)
class HessianFile:
    """A symmetric matrix in a file: float32, strips of 256 rows from the diagonal to the right end.

    Attributes:
        path: of the file.
        columns: n of [n, n].
        digest: SHA-256 of the file's bytes, hexadecimal.
        order: int [n], rows and columns are taken in this order when it is read; None as they lie.
    """

    path: Path
    columns: int
    digest: str
    order: NDArray[np.intp] | None = None

    def read(self) -> NDArray[np.float32]:
        """The matrix, float32 [n, n], owned by the caller.

        Raises:
            CalibrationError: the file has become shorter.
        """
        whole = mirrored(self._strips(), self.columns)
        return whole if self.order is None else np.ascontiguousarray(whole[np.ix_(self.order, self.order)])

    def _strips(self) -> Iterator[NDArray[np.float32]]:
        with self.path.open("rb") as stream:
            for start, stop in _strips(self.columns):
                shape = (stop - start, self.columns - start)
                strip = np.fromfile(stream, np.float32, shape[0] * shape[1])
                if len(strip) != shape[0] * shape[1]:
                    raise CalibrationError(f"{self.path}: expected rows {start} to {stop - 1}, file ends before")
                yield strip.reshape(shape)

    def reordered(self, order: NDArray[np.intp]) -> HessianFile:
        """The same with rows and columns in another order."""
        return replace(self, order=order if self.order is None else self.order[order])

    @property
    def identity(self) -> bytes:
        """What two of them share only if they read alike."""
        return self.digest.encode() + (b"" if self.order is None else np.ascontiguousarray(self.order).tobytes())


class HessianFolder:
    """Where Hessians of one calibration lie.

    Args:
        folder: made when needed.
        blocks: of the model: what the first takes tells whether the disk has room for all.
    """

    def __init__(self, folder: Path, blocks: int) -> None:
        self.folder, self._blocks = folder, blocks

    def put(self, group: str, found: Mapping[str, LinearStatistics]) -> dict[str, LinearStatistics]:
        """The same statistics with their Hessians in files; those that share one share a file.

        Args:
            group: begins the files' names, such as `block-00003`; what lies there under that name is replaced.
            found: of a block's layers.

        Raises:
            ResourceError: the disk is, or would become, too full.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        files: dict[int, HessianFile] = {}
        moved = {}
        for name, own in found.items():
            if own.hessian is None:
                moved[name] = own
                continue
            if id(own.hessian) not in files:
                path = self.folder / f"{group}-{len(files)}.hessian"
                files[id(own.hessian)] = _written(path, own.hessian)
            moved[name] = replace(own, hessian=None, stored=files[id(own.hessian)])
        self._check_room(sum(file.path.stat().st_size for file in files.values()))
        return moved

    def _check_room(self, taken: int) -> None:
        """Refuse early: after the first block, whose like all others are."""
        blocks, self._blocks = self._blocks, 0
        needed, free = taken * (blocks - 1), shutil.disk_usage(self.folder).free
        if needed > free:
            raise ResourceError(
                f"folder '{self.folder}': second moments of {blocks} blocks need {format_size(needed)} more on disk,"
                f" only {format_size(free)} are free; free some space, or use --imatrix in place of --calibration"
            )


def _strips(columns: int) -> Iterator[tuple[int, int]]:
    for start in range(0, columns, STRIP):
        yield start, min(start + STRIP, columns)


def mirrored(strips: Iterable[NDArray[Any]], columns: int) -> NDArray[np.float32]:
    """The symmetric matrix [columns, columns] of its strips, in order."""
    whole = np.empty((columns, columns), np.float32)
    for (start, stop), strip in zip(_strips(columns), strips, strict=True):
        whole[start:stop, start:] = strip
        whole[stop:, start:stop] = whole[start:stop, stop:].T
    return whole


def _written(path: Path, matrix: NDArray[np.float32]) -> HessianFile:
    """Write a symmetric matrix to `path`, whole or not at all."""
    digest, partial = hashlib.sha256(), path.with_suffix(".partial")
    try:
        with partial.open("wb") as stream:
            for start, stop in _strips(len(matrix)):
                strip = np.ascontiguousarray(matrix[start:stop, start:], np.float32)
                digest.update(strip.data)
                stream.write(strip.data)
            os.fsync(stream.fileno())  # the block's statistics will say that it is here
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise output_error(path, error) from None
    return HessianFile(path, len(matrix), digest.hexdigest())
