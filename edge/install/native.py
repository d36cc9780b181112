"""Decodes a GGUF of the variant into a plain GGUF that stock llama.cpp runs; numpy and ggml, no torch.

Chunks of rows are decoded and quantised on several threads and written in order, so memory is a few chunks and
the bytes do not depend on threads. Where the result is kept is left to the caller.
"""

from __future__ import annotations

import mmap
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import CodecError, NumericError, UsageError
from edgepack.files.output import atomic_output
from edgepack.files.source import open_source
from edgepack.gguf import keys
from edgepack.gguf.reader import GGUFHeader, read_header
from edgepack.gguf.types import GGMLType, TensorInfo, Value, ValueType
from edgepack.gguf.variant import DTYPES, CodedTensor, Variant, read_variant
from edgepack.gguf.writer import GGUFWriter, encode_header, padding, place_tensors
from edgepack.processors import default_threads
from edgepack.progress import silent
from edgepack.quant.codecs.chain import open_chain
from edgepack.quant.codecs.codec import Encoded
from edgepack.quant.codecs.decode import map_rows
from edgepack.quant.codecs.ggml.codec import needs_importance, quantize_rows, valid_rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.progress import Progress
    from edgepack.quant.codecs.codec import Decoder

_COPY_BYTES = 1 << 24
_QUANTIZATION_VERSION = Value(ValueType.UINT32, 2)  # GGML_QNT_VERSION in ggml.h
# Types that no codec's weights can be brought into: integers, and activations' own types.
_NOT_FOR_WEIGHTS = frozenset(
    (GGMLType.I8, GGMLType.I16, GGMLType.I32, GGMLType.I64, GGMLType.F64, GGMLType.Q8_1, GGMLType.Q8_K)
)


@dataclass(frozen=True)
class NativePlan:
    """The plain GGUF before it is written.

    Attributes:
        variant: what is decoded.
        metadata: every key of the plain GGUF.
        infos: its tensors, in file order.
    """

    variant: Variant
    metadata: dict[str, Value]
    infos: tuple[TensorInfo, ...]

    @property
    def total_bytes(self) -> int:
        """Exact length of the plain GGUF."""
        return GGUFWriter(_Nowhere(), self.metadata, self.infos).total_bytes  # type: ignore[arg-type]


class _Nowhere:
    """A stream that is never written to."""


def plan_native(path: Path, native_type: GGMLType | None = None) -> NativePlan:
    """Read the header of a variant and check every component, before any is decoded.

    Args:
        path: a GGUF of the variant.
        native_type: what every coded tensor becomes; None for the type that each one names. Rows that the type
            cannot hold become F16.

    Raises:
        GGUFError: not a GGUF.
        CodecError: not a variant that this edgepack can decode.
        UsageError: a type that cannot hold weights.
    """
    if native_type is not None and (native_type in _NOT_FOR_WEIGHTS or needs_importance(native_type)):
        raise UsageError(f"native type {native_type.name}: weights cannot be brought into it on the device")
    variant = read_variant(read_header(path))
    with _mapped(path) as buffer:
        for tensor in variant.coded:
            with _named(tensor, variant):
                _open(tensor, variant, buffer)
    infos = tuple(_native_info(tensor, native_type) for tensor in variant.tensors)
    return NativePlan(variant, {**variant.plain_metadata, keys.QUANTIZATION_VERSION: _QUANTIZATION_VERSION}, infos)


def native_header(header: GGUFHeader) -> GGUFHeader:
    """The header that the plain GGUF will have, for planning memory before anything is decoded.

    Raises:
        CodecError: a description that contradicts itself or the file.
    """
    variant = read_variant(header)
    metadata = {**variant.plain_metadata, keys.QUANTIZATION_VERSION: _QUANTIZATION_VERSION}
    tensors = place_tensors([_native_info(tensor, None) for tensor in variant.tensors], header.alignment)
    data_start = len(encode_header(metadata, tensors, header.alignment))
    end = tensors[-1].offset + tensors[-1].nbytes if tensors else 0
    file_bytes = data_start + end + padding(end, header.alignment)
    by_name = {tensor.name: tensor for tensor in tensors}
    return GGUFHeader(header.path, 3, metadata, tensors, header.alignment, data_start, file_bytes, by_name)


def _native_info(tensor: CodedTensor | TensorInfo, native_type: GGMLType | None) -> TensorInfo:
    """The entry in the plain GGUF."""
    if isinstance(tensor, TensorInfo):
        return tensor
    kind = tensor.native if native_type is None else native_type
    fits = tensor.shape[-1] % kind.block_size == 0
    return TensorInfo(tensor.name, tensor.shape, kind if fits else GGMLType.F16)


def write_native(plan: NativePlan, output: Path, *, threads: int | None = None, progress: Progress = silent) -> int:
    """Write the plain GGUF; it appears under its name only when it is whole. Returns its length in bytes.

    Args:
        plan: what to write.
        output: the final name.
        threads: that decode and quantise; as many as processors when None. They do not change the bytes.
        progress: told the bytes written.

    Raises:
        CodecError: a stored value is impossible.
        NumericError: decoded weights do not fit into the native type.
        ResourceError: the disk is or becomes too small.
    """
    variant = plan.variant
    with _mapped(variant.header.path) as buffer, atomic_output(output, plan.total_bytes) as stream:
        writer = GGUFWriter(stream, plan.metadata, plan.infos)
        writer.write_header()
        with progress("decode", sum(info.nbytes for info in plan.infos)) as advance:
            for tensor, info in zip(variant.tensors, plan.infos, strict=True):
                for piece in _tensor_bytes(tensor, info, variant, buffer, threads or default_threads()):
                    writer.write(info.name, memoryview(piece).cast("B"))
                    advance(len(piece))
        writer.close()
        return writer.total_bytes


def _tensor_bytes(
    tensor: CodedTensor | TensorInfo, info: TensorInfo, variant: Variant, buffer: mmap.mmap, threads: int
) -> Iterator[bytes]:
    """The bytes of one tensor of the plain GGUF, piece by piece."""
    if isinstance(tensor, TensorInfo):
        start = variant.header.data_start + tensor.offset
        for offset in range(0, tensor.nbytes, _COPY_BYTES):
            yield buffer[start + offset : start + min(offset + _COPY_BYTES, tensor.nbytes)]
        return

    def quantise(_start: int, _stop: int, rows: NDArray[np.float32]) -> bytes:
        blocks = quantize_rows(info.type, rows, quantizer="ggml")  # digests of what was decoded before stay true
        if not valid_rows(info.type, blocks):
            raise NumericError(f"tensor '{info.name}': decoded weights do not fit into {info.type.name}")
        return blocks.tobytes()

    with _named(tensor, variant):
        decoder = _open(tensor, variant, buffer)
        yield from map_rows(decoder, (prod(info.shape[:-1]), info.shape[-1]), quantise, threads)


@contextmanager
def _named(tensor: CodedTensor, variant: Variant) -> Iterator[None]:
    """What a codec finds wrong is said of the file's tensor."""
    try:
        yield
    except CodecError as error:
        raise CodecError(f"{variant.header.path}: tensor '{tensor.name}': {error}") from error


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    """The file's bytes, paged in as they are read. Left to the garbage collector: arrays still point into it."""
    with open_source(path) as stream:
        yield mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def _open(tensor: CodedTensor, variant: Variant, buffer: mmap.mmap) -> Decoder:
    """A decoder over the mapped file; raises CodecError where components do not belong together."""
    start = variant.header.data_start

    def component(info: TensorInfo) -> NDArray[np.generic]:
        return np.frombuffer(buffer, DTYPES[info.type], info.shape[0], start + info.offset)

    return open_chain(
        [
            Encoded(
                stage.codec,
                stage.version,
                tensor.matrix_shape,
                stage.parameters,
                {name: component(info) for name, info in stage.components.items()},
            )
            for stage in tensor.stages
        ]
    )
