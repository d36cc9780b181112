"""How close ways to code quantised weights come to the entropy of single weights: what the layouts were chosen by.

    python tools/symbol_coding.py FILE.gguf        a file with Q4_K, Q5_K or Q6_K tensors

Each way turns the weights into bytes for zstd: with its Huffman stage alone, as the archive does, and at level 10.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import zstandard
from field_entropy import block_weights, entropy_bytes

from edgepack.gguf.reader import read_header
from edgepack.gguf.types import GGMLType
from edgepack.packaging.coding.streams import ENTROPY_ONLY

if TYPE_CHECKING:
    from numpy.typing import NDArray

PIECE_BYTES = 1 << 20
BITS = {GGMLType.Q4_K: 4, GGMLType.Q5_K: 5, GGMLType.Q6_K: 6}


def ways(weights: NDArray[np.uint8], bits: int) -> dict[str, tuple[NDArray[np.uint8], float]]:
    """Name → (bytes to be coded, bytes stored as they are beside them)."""
    spare = bits - 4
    upper, mirrored = weights >> spare, np.minimum(weights, (1 << bits) - 1 - weights)
    found = {"one weight a byte": (weights, 0.0)}
    name = "two weights a byte" if bits == 4 else f"upper four bits of two a byte, {spare} stored"
    found[name] = (upper[::2] | upper[1::2] << 4, weights.size * spare / 8)
    if bits == 5:
        found["mirrored, two a byte, highest bit stored"] = (mirrored[::2] | mirrored[1::2] << 4, weights.size / 8)
    return found


def coded(content: NDArray[np.uint8], parameters: zstandard.ZstdCompressionParameters) -> int:
    """Length after coding in pieces of a chunk's length."""
    compressor = zstandard.ZstdCompressor(compression_params=parameters)
    pieces = (content[start : start + PIECE_BYTES].tobytes() for start in range(0, content.size, PIECE_BYTES))
    return sum(min(len(piece), len(compressor.compress(piece))) for piece in pieces)


def main() -> None:
    """Print a table for each type in the file."""
    path = Path(sys.argv[1])
    header, data = read_header(path), np.memmap(path, np.uint8, "r")
    for kind, bits in BITS.items():
        starts = [(header.data_start + t.offset, t.nbytes) for t in header.tensors if t.type is kind]
        if not starts:
            continue
        raw = np.concatenate([data[start : start + size] for start, size in starts])
        weights = block_weights(kind, raw.reshape(-1, kind.block_bytes))
        bound = entropy_bytes(np.bincount(weights))
        print(f"{kind.name}: {weights.size} weights, entropy {8 * bound / weights.size:.4f} bits; sizes over it")
        level = zstandard.ZstdCompressionParameters.from_level(10)
        for name, (content, stored) in ways(weights, bits).items():
            figures = ", ".join(
                f"{label} {(coded(content, parameters) + stored) / bound:.4f}"
                for label, parameters in (("Huffman alone", ENTROPY_ONLY), ("level 10", level))
            )
            print(f"  {name:44} {figures}")


if __name__ == "__main__":
    main()
