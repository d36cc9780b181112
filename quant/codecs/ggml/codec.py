"""ggml's tensor types as a codec: rows of float32 to blocks and back.

Pure functions on arrays, by edgepack's own encoders or by the library that will run the blocks; which tensor gets which
type is left to `edgepack.quant.types.choice`, threads to the caller (every call releases the interpreter's lock).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import CodecError
from edgepack.gguf.types import GGMLType
from edgepack.quant.codecs.ggml import without_library
from edgepack.quant.codecs.ggml.encoders import ENCODED_TYPES, encode_rows
from edgepack.quant.codecs.ggml.library import convert_rows, ggml, has_ggml, type_traits
from edgepack.quant.codecs.ggml.without_library import NEED_IMPORTANCE, finite, narrow

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.quant.codecs.ggml.encoders import Quantizer

_WIDEN = {GGMLType.BF16: "ggml_bf16_to_fp32_row", GGMLType.F16: "ggml_fp16_to_fp32_row"}
_NARROW = {GGMLType.BF16: "ggml_fp32_to_bf16_row", GGMLType.F16: "ggml_fp32_to_fp16_row"}


def needs_importance(kind: GGMLType) -> bool:
    """Whether ggml refuses to quantise to `kind` without an importance matrix."""
    return bool(ggml().ggml_quantize_requires_imatrix(kind)) if has_ggml() else kind in NEED_IMPORTANCE


def quantize_rows(
    kind: GGMLType,
    rows: NDArray[np.float32],
    importance: NDArray[np.float32] | None = None,
    quantizer: Quantizer = "edgepack",
) -> NDArray[np.uint8]:
    """Rows to blocks of `kind`; each row by itself, so that any chunks of them give the same bytes.

    Args:
        kind: the target type.
        rows: float32, shape [n, columns]; columns a multiple of the type's block size.
        importance: float32, shape [columns], or None.
        quantizer: `ggml` for the bytes of `ggml_quantize_chunk`, the function that llama.cpp's own quantiser calls;
            `edgepack` for its own encoders where the type has one.

    Returns:
        uint8, shape [n, bytes of a row].

    Raises:
        CodecError: wrong shape, or a type that needs an importance matrix has none.
    """
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    if rows.ndim != 2:
        raise CodecError(f"type {kind.name}: expected rows of shape [n, columns], got {rows.shape}")
    out = np.empty((len(rows), kind.row_bytes(rows.shape[1])), dtype=np.uint8)
    if kind is GGMLType.F32:
        return rows.view(np.uint8).reshape(out.shape)
    if kind in _NARROW and not has_ggml():
        return narrow(kind, rows)
    if kind in _NARROW:
        getattr(ggml(), _NARROW[kind])(rows.ctypes.data, out.ctypes.data, rows.size)
        return out
    weights = _checked_importance(kind, importance, rows.shape[1])
    if quantizer == "edgepack" and kind in ENCODED_TYPES:
        encode_rows(kind, rows, weights, out)
    else:
        _quantize_chunk(kind, rows, weights, out)
    return out


def _quantize_chunk(
    kind: GGMLType, rows: NDArray[np.float32], weights: NDArray[np.float32] | None, out: NDArray[np.uint8]
) -> None:
    """The quantiser of ggml itself into `out`; modifies it."""
    count, columns = rows.shape
    address = None if weights is None else weights.ctypes.data
    written = ggml().ggml_quantize_chunk(kind, rows.ctypes.data, out.ctypes.data, 0, count, columns, address)
    if written != out.nbytes:
        raise CodecError(f"type {kind.name}: expected {out.nbytes} bytes from ggml, got {written}")


def _checked_importance(
    kind: GGMLType, importance: NDArray[np.float32] | None, columns: int
) -> NDArray[np.float32] | None:
    if importance is None:
        if needs_importance(kind):
            raise CodecError(f"type {kind.name} needs an importance matrix")
        return None
    weights = np.ascontiguousarray(importance, dtype=np.float32)
    if weights.shape != (columns,):
        raise CodecError(f"importance matrix: expected shape ({columns},), got {weights.shape}")
    return weights


def dequantize_rows(kind: GGMLType, blocks: Any, rows: int, columns: int) -> NDArray[np.float32]:
    """The float32 weights of `rows` rows, as llama.cpp's reference kernels see them.

    Args:
        kind: the type of `blocks`.
        blocks: any bytes-like object of rows × row bytes.
        rows: number of rows.
        columns: weights in a row.

    Returns:
        float32, shape [rows, columns], owned by the caller.

    Raises:
        CodecError: `blocks` has another length, or the type has no way back to floats.
    """
    raw = np.frombuffer(blocks, dtype=np.uint8)
    expected = rows * kind.row_bytes(columns)
    if raw.nbytes != expected:
        raise CodecError(f"type {kind.name}: expected {expected} bytes, got {raw.nbytes}")
    out = np.empty((rows, columns), dtype=np.float32)
    if kind is GGMLType.F32:
        out.view(np.uint8).reshape(-1)[:] = raw
    elif kind in _WIDEN:
        widen(kind, raw, out)
    elif not has_ggml():
        out[:] = without_library.dequantize(kind, raw, rows).reshape(rows, columns)
    else:
        converter = type_traits(kind).to_float
        if not converter:
            raise CodecError(f"type {kind.name} cannot be turned back into floats")
        convert_rows(converter, raw.ctypes.data, out.ctypes.data, out.size)
    return out


def widen(kind: GGMLType, raw: Any, out: NDArray[np.float32]) -> None:
    """Widen BF16 or F16 bytes into `out` (float32, contiguous) with ggml's vector code; modifies `out`."""
    source = np.frombuffer(raw, dtype=np.uint8)
    if source.nbytes != out.size * 2:
        raise CodecError(f"type {kind.name}: expected {out.size * 2} bytes, got {source.nbytes}")
    if not has_ggml():
        out.reshape(-1)[:] = without_library.widen(kind, source)
        return
    getattr(ggml(), _WIDEN[kind])(source.ctypes.data, out.ctypes.data, out.size)


def valid_rows(kind: GGMLType, blocks: NDArray[np.uint8]) -> bool:
    """Whether every scale in `blocks` is finite (`ggml_validate_row_data`)."""
    if not has_ggml():
        return finite(kind, blocks.reshape(-1), len(blocks) if blocks.ndim > 1 else 1)
    return bool(ggml().ggml_validate_row_data(kind, blocks.ctypes.data, blocks.nbytes))
