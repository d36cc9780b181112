"""The order-0 entropy of the block fields of a GGUF: what an ideal coder of single symbols would need."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgepack.gguf.reader import read_header
from edgepack.gguf.types import GGMLType
from edgepack.packaging.coding import planes
from edgepack.packaging.coding.layouts import layout_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

# Types whose quants stay joined in a byte: bits of one weight, so that the bound is over single weights.
WEIGHT_BITS = {
    GGMLType.Q4_0: 4, GGMLType.Q4_1: 4, GGMLType.IQ4_NL: 4, GGMLType.IQ4_XS: 4, GGMLType.MXFP4: 4, GGMLType.NVFP4: 4,
    GGMLType.Q4_K: 4, GGMLType.Q3_K: 3, GGMLType.Q2_K: 2, GGMLType.TQ2_0: 2,
}  # fmt: skip


def entropy_bytes(counts: NDArray[np.int64]) -> float:
    """Bytes that an ideal order-0 coder needs for symbols with these counts."""
    counts = counts[counts > 0].astype(np.float64)
    return float((counts * (np.log2(counts.sum()) - np.log2(counts))).sum() / 8)


def entropy_bound(path: Path) -> float:
    """Bytes of the tensors' fields at their order-0 entropy, one distribution for each field of each type."""
    header = read_header(path)
    counts: dict[tuple[GGMLType, str], NDArray[np.int64]] = {}
    data = np.memmap(path, np.uint8, "r")
    for tensor in header.tensors:
        start, block_bytes = header.data_start + tensor.offset, tensor.type.block_bytes
        for low in range(0, tensor.nbytes, step := block_bytes * 16384):
            raw = data[start + low : start + min(low + step, tensor.nbytes)]
            for name, symbols in _fields(tensor.type, raw):
                key = (tensor.type, name)
                counts[key] = counts.get(key, np.zeros(256, np.int64)) + np.bincount(symbols, minlength=256)
    return sum(entropy_bytes(count) for count in counts.values())


def _fields(kind: GGMLType, raw: NDArray[np.uint8]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """(name, symbols) of the fields of whole blocks, every weight a symbol of its own whatever the archive does."""
    layout, blocks = layout_of(kind), raw.reshape(-1, kind.block_bytes)
    for (number, _size), stream in zip(
        planes.plane_sizes(layout, raw.size), planes.split(layout, raw.tobytes()), strict=True
    ):
        name = layout.planes[number].name
        if kind is GGMLType.Q5_K and name == "highest bits":
            continue
        if kind is GGMLType.Q5_K and name == "quants":
            stream = block_weights(kind, blocks)
        bits = WEIGHT_BITS.get(kind) if name == "quants" else None
        yield name, stream if bits is None else _weights(bits, stream)


def _weights(bits: int, quants: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Single weights of bytes (or symbols) that hold several."""
    return np.concatenate([quants >> shift & (1 << bits) - 1 for shift in range(0, 8 - bits + 1, bits)])


def block_weights(kind: GGMLType, blocks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The integer weights of Q4_K, Q5_K or Q6_K blocks (uint8, shape [n, bytes of a block]), in ggml's order."""
    shifts = np.array([[0], [4]], np.uint8)
    if kind is GGMLType.Q6_K:
        nibbles = blocks[:, :128].reshape(-1, 2, 1, 64) >> shifts & 15
        upper = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3
        return (nibbles.reshape(-1, 2, 4, 32) | upper << 4).ravel()
    quants = blocks[:, 16:] if kind is GGMLType.Q4_K else blocks[:, 48:]
    nibbles = (quants.reshape(-1, 4, 1, 32) >> shifts & 15).reshape(-1, 8, 32)
    if kind is GGMLType.Q4_K:
        return nibbles.ravel()
    highest = blocks[:, 16:48].reshape(-1, 1, 32) >> np.arange(8, dtype=np.uint8)[:, None] & 1
    return (nibbles | highest << 4).ravel()
