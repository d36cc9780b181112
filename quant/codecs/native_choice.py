"""Chooses what a coded matrix becomes on the device: the smallest ggml type that adds almost no error.

"Almost none" is a tenth of the codec's own squared error; a codec without error wants a type without error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgepack.gguf.types import GGMLType
from edgepack.quant.codecs.codec import row_chunks
from edgepack.quant.codecs.ggml.codec import dequantize_rows, quantize_rows, valid_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.quant.codecs.codec import Decoder

ALLOWED_SHARE = 0.1
# Every type that ggml makes without an importance matrix and that pays at some error, smallest first.
LADDER = (
    GGMLType.TQ1_0, GGMLType.TQ2_0, GGMLType.Q2_K, GGMLType.Q3_K, GGMLType.IQ4_XS, GGMLType.IQ4_NL, GGMLType.Q4_K,
    GGMLType.Q4_0, GGMLType.Q4_1, GGMLType.Q5_K, GGMLType.Q5_0, GGMLType.Q5_1, GGMLType.Q6_K, GGMLType.Q8_0,
    GGMLType.F16, GGMLType.F32,
)  # fmt: skip
# Weights that a lossy type is tried on; a type that must be exact is tried on all.
_SAMPLE_WEIGHTS = 1 << 17


def choose_native(decoder: Decoder, shape: tuple[int, int], codec_error: float) -> GGMLType:
    """The smallest type of the ladder with ‖Q(Ŵ) - Ŵ‖² ≤ a tenth of the codec's ‖W - Ŵ‖².

    Args:
        decoder: gives Ŵ.
        shape: of Ŵ, (rows, columns).
        codec_error: ‖W - Ŵ‖² summed over the whole matrix; where it is 0, no type may add any.
    """
    rows, columns = shape
    fitting = [kind for kind in LADDER if columns % kind.block_size == 0]
    if codec_error <= 0:
        return next((kind for kind in fitting if _is_exact(kind, decoder, shape)), GGMLType.F32)
    count = max(1, min(rows, _SAMPLE_WEIGHTS // columns))
    sample = np.concatenate([decoder.rows(at, at + 1) for at in np.linspace(0, rows - 1, count).astype(int).tolist()])
    allowed = ALLOWED_SHARE * codec_error * count / rows
    return next((kind for kind in fitting if _added_error(kind, sample) <= allowed), GGMLType.F32)


def _is_exact(kind: GGMLType, decoder: Decoder, shape: tuple[int, int]) -> bool:
    """Whether the type holds every weight, by pieces of rows."""
    return all(_added_error(kind, decoder.rows(start, stop)) == 0 for start, stop in row_chunks(*shape))


def _added_error(kind: GGMLType, rows: NDArray[np.float32]) -> float:
    """Squared error that the type adds, infinite where it cannot hold the weights."""
    blocks = quantize_rows(kind, rows)
    if not valid_rows(kind, blocks):
        return float("inf")
    difference = dequantize_rows(kind, blocks, *rows.shape) - rows
    return float(np.vdot(difference, difference))
