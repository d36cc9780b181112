"""Chooses what a coded matrix becomes on the device: the smallest ggml type that adds almost no error.

"Almost none" is a tenth of the codec's own squared error; a codec without error wants a type without error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgepack.gguf.types import GGMLType
from edgepack.quant.codecs.ggml.codec import dequantize_rows, quantize_rows, valid_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

ALLOWED_SHARE = 0.1
# Every type that ggml makes without an importance matrix and that pays at some error, smallest first.
LADDER = (
    GGMLType.TQ1_0, GGMLType.TQ2_0, GGMLType.Q2_K, GGMLType.Q3_K, GGMLType.IQ4_XS, GGMLType.IQ4_NL, GGMLType.Q4_K,
    GGMLType.Q4_0, GGMLType.Q4_1, GGMLType.Q5_K, GGMLType.Q5_0, GGMLType.Q5_1, GGMLType.Q6_K, GGMLType.Q8_0,
    GGMLType.F16, GGMLType.F32,
)  # fmt: skip
# Weights that a lossy type is tried on; a type that must be exact is tried on all.
_SAMPLE_WEIGHTS = 1 << 17


def choose_native(decoded: NDArray[np.float32], codec_error: float) -> GGMLType:
    """The smallest type of the ladder with ‖Q(Ŵ) - Ŵ‖² ≤ a tenth of the codec's ‖W - Ŵ‖².

    Args:
        decoded: Ŵ, float32 [rows, columns].
        codec_error: ‖W - Ŵ‖² summed over the whole matrix.
    """
    sample = decoded
    if codec_error > 0:
        rows = max(1, min(len(decoded), _SAMPLE_WEIGHTS // decoded.shape[1]))
        sample = decoded[np.linspace(0, len(decoded) - 1, rows).astype(np.int64)]
    allowed = ALLOWED_SHARE * codec_error * len(sample) / len(decoded)
    for kind in LADDER:
        if decoded.shape[1] % kind.block_size == 0 and _added_error(kind, sample) <= allowed:
            return kind
    return GGMLType.F32


def _added_error(kind: GGMLType, rows: NDArray[np.float32]) -> float:
    """Squared error that the type adds, infinite where it cannot hold the weights."""
    blocks = quantize_rows(kind, rows)
    if not valid_rows(kind, blocks):
        return float("inf")
    difference = dequantize_rows(kind, blocks, *rows.shape) - rows
    return float(np.vdot(difference, difference))
