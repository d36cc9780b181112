"""A GGUF as the source of an export: its metadata and tensors as they are, so any architecture can be re-typed.

Nothing is renamed or permuted. Which types the output gets is left to `export.plan`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import GGUFError, UnsupportedModelError, UsageError
from edgepack.export.facts import model_facts
from edgepack.export.mapped import MappedModel
from edgepack.export.rows import SourceRows
from edgepack.files.source import FileState, WatchedFiles, check_unchanged, open_descriptor
from edgepack.gguf import keys
from edgepack.gguf.reader import GGUFHeader, read_header
from edgepack.gguf.types import GGMLType
from edgepack.model import TensorSpec
from edgepack.quant.codecs.ggml.codec import dequantize_rows

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.export.rows import Rows
    from edgepack.gguf.types import TensorInfo

_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_MAX_SPLITS = 99_999
# decided anew by the export, or true only of the file they were read from
_DROPPED = re.compile(r"general\.(file_type|quantization_version|alignment)$|split\.|quantize\.imatrix\.")
_INTEGERS = frozenset({GGMLType.I8, GGMLType.I16, GGMLType.I32, GGMLType.I64})


class GGUFTensors:
    """The tensors of a GGUF, one file or several: a `TensorSource` that also gives stored blocks. Thread-safe.

    Args:
        headers: of every file.

    Raises:
        GGUFError: a tensor that occurs twice, or a file that cannot be opened.
    """

    def __init__(self, headers: list[GGUFHeader]) -> None:
        self._headers = headers
        self._descriptors: list[int] = []
        self._places: dict[str, tuple[int, int, TensorInfo]] = {}
        for header in headers:
            try:
                self._descriptors.append(open_descriptor(header.path, GGUFError))
            except OSError as error:
                raise GGUFError(f"{header.path}: cannot be read: {error.strerror}") from error
            for info in header.tensors:
                if info.name in self._places:
                    raise GGUFError(f"{header.path}: tensor '{info.name}' occurs twice")
                self._places[info.name] = (self._descriptors[-1], header.data_start + info.offset, info)

    def __reduce__(self) -> tuple[type[GGUFTensors], tuple[list[GGUFHeader]]]:
        """Another process opens the files anew, under the same names."""
        return GGUFTensors, (self._headers,)

    def __del__(self) -> None:
        for descriptor in getattr(self, "_descriptors", ()):
            os.close(descriptor)

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Every tensor, in file order; dtypes are ggml's names in lower case."""
        return {
            name: TensorSpec(name, info.shape, info.type.name.lower()) for name, (_, _, info) in self._places.items()
        }

    def info(self, name: str) -> TensorInfo:
        """The header entry of a tensor."""
        return self._places[name][2]

    def read_blocks(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """Rows `start` to `stop` (not included) as they are stored: uint8, shape [rows, bytes of a row].

        Raises:
            GGUFError: the file has become shorter.
        """
        descriptor, origin, info = self._places[name]
        row_bytes = info.type.row_bytes(info.shape[-1])
        out = np.empty((stop - start, row_bytes), dtype=np.uint8)
        view, done = out.reshape(-1).data, 0
        while done < out.nbytes:
            got = os.preadv(descriptor, [view[done:]], origin + start * row_bytes + done)
            if got == 0:
                raise GGUFError(f"tensor '{name}': the file became shorter while it was read")
            done += got
        return out

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """As `TensorSource.read_rows`, of any type that has a way back to floats."""
        info = self.info(name)
        blocks = self.read_blocks(name, start, stop)
        return dequantize_rows(info.type, blocks.reshape(-1), stop - start, info.shape[-1])


@dataclass(frozen=True)
class StoredRows(SourceRows):
    """Rows of a GGUF's tensor; an output of the same type takes its blocks untouched (`StoredBlocks`)."""

    tensors: GGUFTensors

    @property
    def stored_type(self) -> GGMLType:
        """The type of the blocks."""
        return self.tensors.info(self.name).type

    def read_blocks(self, start: int, stop: int) -> NDArray[np.uint8]:
        """As `GGUFTensors.read_blocks`."""
        return self.tensors.read_blocks(self.name, start, stop)


def map_gguf(path: Path, *, allow_requantize: bool = False) -> MappedModel:
    """The model in a GGUF (the first file where it is split).

    Args:
        path: the file.
        allow_requantize: whether quantised tensors may be turned into floats and quantised again.

    Raises:
        GGUFError: truncated, hostile or inconsistent.
        UnsupportedModelError: not a model (an adapter, a projector), or tensors of integers.
        UsageError: quantised tensors without `allow_requantize`.
    """
    began = FileState.of(path)
    headers = _read_split(path)
    sources = WatchedFiles.of(header.path for header in headers)
    check_unchanged(path, began, GGUFError)
    first = headers[0]
    kind = first.get(keys.TYPE, "model")
    if kind != "model":
        raise UnsupportedModelError(f"{path}: expected a GGUF of a model, got general.type {kind!r}")
    tensors = GGUFTensors(headers)
    for name in tensors.specs:
        _check_type(path, tensors.info(name), allow_requantize)
    metadata = {key: value for key, value in first.metadata.items() if not _DROPPED.match(key)}
    rows: dict[str, Rows] = {name: StoredRows(tensors, name, tensors) for name in tensors.specs}
    notes = tuple(
        f"{header.path.name}: {header.trailing_bytes} bytes behind the last tensor belong to none and are left out"
        for header in headers if header.trailing_bytes
    )  # fmt: skip
    return MappedModel(str(path), metadata, rows, model_facts(first.metadata, path), sources, notes=notes)


def _check_type(path: Path, info: TensorInfo, allow_requantize: bool) -> None:
    if info.type in _INTEGERS or info.type is GGMLType.F64:
        raise UnsupportedModelError(f"{path}: tensor '{info.name}': expected weights, got {info.type.name}")
    if info.type.is_quantized and not allow_requantize:
        raise UsageError(
            f"{path}: tensor '{info.name}' is {info.type.name} already: quantising again adds its error to that one; "
            "--allow-requantize does it all the same"
        )


def _read_split(path: Path) -> list[GGUFHeader]:
    """The headers of all files of a split model."""
    header = read_header(path)
    count = header.get(keys.SPLIT_COUNT, 1)
    if type(count) is not int or count <= 1:
        return [header]
    match = _SPLIT.search(path.name)
    if match is None or int(match[1]) != 1 or int(match[2]) != count or count > _MAX_SPLITS:
        raise GGUFError(f"{path}: expected the first of {count} files, named …-00001-of-{count:05}.gguf")
    stem = path.name[: match.start()]
    others = [path.with_name(f"{stem}-{number:05}-of-{count:05}.gguf") for number in range(2, count + 1)]
    return [header, *map(read_header, others)]
