"""Writes a GGUF of the variant: coded matrices spooled beside the output, then header and components in one file.

The header holds what is known only after coding (errors, native types), so components wait in an unnamed temporary
file. Which matrix gets which codec is left to `export.variant`.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from edgepack.packaging.variant import TYPES, CodedTensor, Stage, component_name, variant_metadata

from edgepack.atomic_file import atomic_output
from edgepack.gguf.types import GGMLType, TensorInfo
from edgepack.gguf.writer import GGUFWriter

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgepack.quant.codecs.chain import ChainResult
    from numpy.typing import NDArray

    from edgepack.gguf.types import Value

_COPY_BYTES = 1 << 24


@dataclass
class VariantSpool:
    """Collects a variant's tensors in file order; nothing appears under the output's name before `finish`.

    Attributes:
        folder: where the temporary file lies, on the output's own file system.
    """

    folder: Path

    def __post_init__(self) -> None:
        self._spool: BinaryIO = tempfile.TemporaryFile(dir=self.folder, prefix=".edgepack-")  # noqa: SIM115
        self._infos: list[TensorInfo] = []
        self._coded: list[CodedTensor] = []

    def add_plain(self, info: TensorInfo, data: NDArray[Any]) -> None:
        """A tensor that stays as it is."""
        self._append(info, data)

    def add_coded(self, name: str, shape: tuple[int, ...], native: GGMLType, result: ChainResult) -> CodedTensor:
        """A coded matrix; returns its description."""
        stages = []
        for number, encoded in enumerate(result.stages):
            infos = {}
            for component, array in encoded.components.items():
                kind = TYPES[array.dtype.name]
                info = TensorInfo(component_name(name, number, encoded.codec, component), array.shape, kind)
                self._append(info, array)
                infos[component] = info
            stages.append(Stage(encoded.codec, encoded.version, encoded.parameters, infos))
        tensor = CodedTensor(name, shape, native, result.error, tuple(stages))
        self._coded.append(tensor)
        return tensor

    def _append(self, info: TensorInfo, data: NDArray[Any]) -> None:
        self._infos.append(info)
        self._spool.write(np.ascontiguousarray(data).view(np.uint8).data)

    def finish(self, metadata: Mapping[str, Value], output: Path) -> int:
        """Write the file under its name; returns its length in bytes.

        Raises:
            ResourceError: the disk is or becomes too small.
        """
        keys = {**metadata, **variant_metadata(self._coded)}
        expected = sum(info.nbytes for info in self._infos)
        with atomic_output(output, expected) as stream:
            writer = GGUFWriter(stream, keys, self._infos)
            writer.write_header()
            self._spool.seek(0)
            for info in self._infos:
                self._copy(writer, info)
            writer.close()
            return writer.total_bytes

    def _copy(self, writer: GGUFWriter, info: TensorInfo) -> None:
        left = info.nbytes
        while left:
            piece = self._spool.read(min(left, _COPY_BYTES))
            writer.write(info.name, piece)
            left -= len(piece)

    def close(self) -> None:
        """Drop the temporary file."""
        self._spool.close()
