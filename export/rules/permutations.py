"""Row orders that differ between Hugging Face and ggml; which tensors need them is the families' data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import CheckpointError
from edgepack.export.arranged_rows import PermutedRows, PickedRows, TransposedRows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.export.config import ModelConfig
    from edgepack.export.rows import Rows


def interleaved_order(n_heads: int, head_dim: int) -> NDArray[np.intp]:
    """Rows of q or k for rope on neighbouring pairs (x₀x₁ x₂x₃ …) from rows for rope on halves (x₀x_{h/2} …).

    HF: [head, 2, head_dim / 2, in] → ggml: [head, head_dim / 2, 2, in] (`LlamaModel.permute` of llama.cpp's
    converter).
    """
    rows = np.arange(n_heads * head_dim).reshape(n_heads, 2, head_dim // 2)
    order: NDArray[np.intp] = rows.swapaxes(1, 2).reshape(-1)
    return order


def fused_order(n_heads: int, head_dim: int) -> NDArray[np.intp]:
    """Rows of q, k and v in turn from rows of a matrix that holds them head by head.

    HF: [head, 3, head_dim, in] → ggml: [3, head, head_dim, in] (GPT-NeoX).
    """
    rows = np.arange(n_heads * 3 * head_dim).reshape(n_heads, 3, head_dim)
    order: NDArray[np.intp] = rows.swapaxes(0, 1).reshape(-1)
    return order


def split_fused_heads(rows: Rows, config: ModelConfig) -> Rows:
    """`fused_order` over the heads."""
    return PermutedRows(rows, fused_order(config.n_heads, config.head_dim))


def transposed(rows: Rows, _config: ModelConfig) -> Rows:
    """HF's Conv1D [in, out] → ggml: [out, in] (GPT-2)."""
    return TransposedRows(rows)


def interleave_queries(rows: Rows, config: ModelConfig) -> Rows:
    """`interleaved_order` over the query heads."""
    return PermutedRows(rows, interleaved_order(config.n_heads, config.head_dim))


def interleave_keys(rows: Rows, config: ModelConfig) -> Rows:
    """`interleaved_order` over the key-value heads."""
    return PermutedRows(rows, interleaved_order(config.n_kv_heads, config.head_dim))


def picked(rows: Rows, order: NDArray[np.intp], of: int) -> Rows:
    """Rows `order` of a tensor of `of` rows.

    Raises:
        CheckpointError: it has not as many.
    """
    if rows.shape[0] != of:
        raise CheckpointError(f"tensor '{getattr(rows, 'name', '')}': expected {of} rows, got {list(rows.shape)}")
    return PickedRows(rows, order)
