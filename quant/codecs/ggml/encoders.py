"""edgepack's own encoders of ggml's types: the same blocks as ggml's, by compiled kernels and a better search.

The weighted error of a tensor is never above that of ggml's own bytes (tests/quant/codecs/test_encoders.py); types that
have no encoder here, and who wants ggml's bytes, are left to `quant.codecs.ggml.codec`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from edgepack.gguf.types import GGMLType
from edgepack.kernels.native import library, pointer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Quantizer = Literal["edgepack", "ggml"]
QUANTIZERS: tuple[Quantizer, ...] = ("edgepack", "ggml")

_KERNELS = {
    GGMLType[name]: f"edgepack_encode_{name.lower()}"
    for name in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "IQ4_XS")
}
ENCODED_TYPES = frozenset(_KERNELS)


def encode_rows(
    kind: GGMLType, rows: NDArray[np.float32], importance: NDArray[np.float32] | None, out: NDArray[np.uint8]
) -> None:
    """Encode `rows` into `out`; the same bytes for any split of the rows, any processor and any thread.

    Args:
        kind: one of `ENCODED_TYPES`.
        rows: float32 [n, columns], contiguous; columns a multiple of the type's block size.
        importance: float32 [columns], contiguous, or None: the share of each column in the error.
        out: uint8 [n, bytes of a row]; written.
    """
    encode = getattr(library(), _KERNELS[kind])
    encode(
        pointer(rows, "const float *"),
        rows.size // kind.block_size,
        rows.shape[1],
        pointer(importance, "const float *"),
        pointer(out, "uint8_t *"),
    )
