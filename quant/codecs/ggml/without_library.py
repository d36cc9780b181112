"""ggml's conversions in numpy, for where no installed engine exports them: xllamacpp's wheel for Windows does not.

The same values and bytes as ggml's (tests/quant/codecs/test_ggml_libraries.py); quantising is left to edgepack's own
encoders (`encoders`), and what has none needs a library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import CodecError
from edgepack.gguf.types import GGMLType

if TYPE_CHECKING:
    from numpy.typing import NDArray

# ggml_quantize_requires_imatrix of ggml.c
NEED_IMPORTANCE = frozenset({GGMLType.IQ2_XXS, GGMLType.IQ2_XS, GGMLType.IQ1_S})
_INTEGERS = frozenset({GGMLType.I8, GGMLType.I16, GGMLType.I32, GGMLType.I64})
_BF16_QUIET = np.uint32(0x40)  # the bit that makes a NaN of bfloat16 quiet


def narrow(kind: GGMLType, rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Float32 rows as F16 or BF16 bytes, to the nearest and ties to even; uint8 [n, 2 × columns]."""
    if kind is GGMLType.F16:
        with np.errstate(over="ignore"):  # too large is infinite, as in ggml
            return rows.astype(np.float16).view(np.uint8).reshape(len(rows), -1)
    bits = np.ascontiguousarray(rows).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | _BF16_QUIET
    halves = np.where(np.isnan(rows), quiet, rounded).astype(np.uint16)
    return np.ascontiguousarray(halves).view(np.uint8).reshape(len(rows), -1)


def widen(kind: GGMLType, raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    """F16 or BF16 bytes as float32, exactly."""
    if kind is GGMLType.F16:
        return raw.view(np.float16).astype(np.float32)
    bits = raw.view(np.uint16).astype(np.uint32) << np.uint32(16)
    return np.asarray(bits.view(np.float32), dtype=np.float32)


def dequantize(kind: GGMLType, raw: NDArray[np.uint8], rows: int) -> NDArray[np.float32]:
    """Blocks as float32 [rows, columns], by gguf-py's translation of ggml's reference code.

    Raises:
        CodecError: gguf-py does not know the type.
    """
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize as convert

    try:
        values = convert(raw.reshape(rows, -1), GGMLQuantizationType(int(kind)))
    except (NotImplementedError, ValueError) as error:
        raise CodecError(f"type {kind.name} cannot be turned back into floats without ggml's library") from error
    return np.asarray(values, dtype=np.float32)


def finite(kind: GGMLType, raw: NDArray[np.uint8], rows: int) -> bool:
    """Whether every weight, and so every scale, is finite."""
    if kind in _INTEGERS:
        return True
    with np.errstate(invalid="ignore", over="ignore"):
        return bool(np.isfinite(dequantize(kind, raw, rows)).all())
