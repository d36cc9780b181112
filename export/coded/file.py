"""The bytes of a GGUF of the variant: drafts of its tensors, the layout that they give, and writing in one pass.

Everything but a few values in descriptions is known before a matrix is coded, and those have room for the longest:
so components go to their places at once, and the header is written last. Which matrix gets which codec is left to
`export.coded.plan`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from edgepack.errors import CodecError
from edgepack.gguf.types import TensorInfo
from edgepack.gguf.variant import TYPES, CodedTensor, Stage, component_name, header_bytes, variant_metadata
from edgepack.gguf.writer import GGUFWriter
from edgepack.quant.codecs.codec import LONGEST_NUMBER
from edgepack.quant.codecs.native_choice import LADDER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from edgepack.gguf.types import GGMLType, Value
    from edgepack.quant.codecs.codec import Codec, Encoded, Parameter

_LONGEST_NATIVE = max(LADDER, key=lambda kind: len(kind.name))


def draft_tensor(name: str, shape: tuple[int, ...], matrix: tuple[int, int], codecs: Sequence[Codec]) -> CodedTensor:
    """A coded tensor before it is coded: every component, and the longest value wherever weights decide.

    Args:
        name: GGUF name.
        shape: row-major.
        matrix: (rows, columns) that the codecs see.
        codecs: the stages, settled.

    Raises:
        CodecError: a component's name would be too long.
    """
    stages = []
    for number, codec in enumerate(codecs):
        parameters = codec.draft(matrix)
        components = {
            key: TensorInfo(
                component_name(name, number, codec.name, key), (part.count,), TYPES[np.dtype(part.dtype).name]
            )
            for key, part in codec.layout(matrix, parameters).items()
        }
        stages.append(Stage(codec.name, codec.version, parameters, components))
    return CodedTensor(name, shape, _LONGEST_NATIVE, -LONGEST_NUMBER, tuple(stages))


def fill_draft(
    draft: CodedTensor,
    native: GGMLType,
    error: float,
    kept: Sequence[bool],
    parameters: Sequence[Mapping[str, Parameter]],
) -> CodedTensor:
    """What a draft becomes once its matrix is coded; it takes exactly the draft's room in the header.

    Args:
        draft: made by `draft_tensor`.
        native: what it becomes on the device.
        error: relative squared error.
        kept: which of the draft's stages are in the file.
        parameters: of the stages that are.

    Raises:
        CodecError: a value is longer than the draft's.
    """
    stages = [stage for stage, is_kept in zip(draft.stages, kept, strict=True) if is_kept]
    renumbered = tuple(
        Stage(stage.codec, stage.version, own, _renamed(draft.name, number, stage))
        for number, (stage, own) in enumerate(zip(stages, parameters, strict=True))
    )
    filled = CodedTensor(draft.name, draft.shape, native, error, renumbered)
    spaces = header_bytes(draft) - header_bytes(filled)
    if spaces < 0:
        raise CodecError(f"tensor '{draft.name}': its description is {-spaces} bytes longer than was planned")
    return replace(filled, spaces=spaces)


def _renamed(tensor: str, number: int, stage: Stage) -> dict[str, TensorInfo]:
    """Components under the number that the stage has in the file."""
    return {
        key: replace(info, name=component_name(tensor, number, stage.codec, key))
        for key, info in stage.components.items()
    }


@dataclass(frozen=True)
class VariantLayout:
    """A file of the variant, or its draft.

    Attributes:
        metadata: every key but the variant's own.
        tensors: in file order.
    """

    metadata: Mapping[str, Value]
    tensors: tuple[CodedTensor | TensorInfo, ...]

    @cached_property
    def _layout(self) -> GGUFWriter:
        coded = [tensor for tensor in self.tensors if isinstance(tensor, CodedTensor)]
        infos: list[TensorInfo] = []
        for tensor in self.tensors:
            infos += tensor.components if isinstance(tensor, CodedTensor) else [tensor]
        return GGUFWriter(BytesIO(), {**self.metadata, **variant_metadata(coded)}, infos)

    @property
    def header(self) -> bytes:
        """Everything before the data section."""
        return self._layout.header

    @property
    def data_start(self) -> int:
        """Where the data section begins."""
        return self._layout.data_start

    @property
    def total_bytes(self) -> int:
        """Length of the file; of a draft whose stages may be dropped, its largest."""
        return self._layout.total_bytes

    @property
    def alignment(self) -> int:
        """Of every tensor in the file."""
        return self._layout.alignment


class VariantWriter:
    """Writes the data section tensor by tensor, and the header at the end.

    Args:
        stream: seekable, at the end of what is written already.
        draft: the planned file.
        done: tensors that are in the file already, as they were filled.
    """

    def __init__(self, stream: BinaryIO, draft: VariantLayout, done: Sequence[CodedTensor | TensorInfo] = ()) -> None:
        self._stream, self._draft = stream, draft
        self._tensors = list(done)
        if not done:
            stream.seek(draft.data_start)

    @property
    def length(self) -> int:
        """Of the file so far."""
        return self._stream.tell()

    def add_plain(self, info: TensorInfo, data: NDArray[Any]) -> None:
        """A tensor that stays as it is."""
        self._append(info, data)
        self._tensors.append(info)

    def add_coded(self, tensor: CodedTensor, stages: Sequence[Encoded]) -> None:
        """A filled draft and its arrays.

        Raises:
            CodecError: an array is not as its codec planned it.
        """
        for stage, encoded in zip(tensor.stages, stages, strict=True):
            for key, info in stage.components.items():
                self._append(info, encoded.components[key])
        self._tensors.append(tensor)

    def _append(self, info: TensorInfo, data: NDArray[Any]) -> None:
        raw = np.ascontiguousarray(data).view(np.uint8).reshape(-1)
        if raw.size != info.nbytes:
            raise CodecError(f"tensor '{info.name}': planned {info.nbytes} bytes, got {raw.size}")
        self._stream.write(raw.data)
        self._stream.write(bytes(-self._stream.tell() % self._draft.alignment))

    def finish(self) -> int:
        """Write the header; returns the file's length in bytes."""
        layout = VariantLayout(self._draft.metadata, tuple(self._tensors))
        assert layout.data_start == self._draft.data_start
        length = self._stream.tell()
        assert length == layout.total_bytes
        self._stream.seek(0)
        self._stream.write(layout.header)
        self._stream.seek(length)
        return length
