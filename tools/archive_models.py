"""Models to try archives on: random ones of any size and type, sparse ones of many gigabytes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from edgepack.gguf.types import GGMLType, TensorInfo, ValueType, array, string, u32
from edgepack.gguf.writer import GGUFWriter
from edgepack.quant.codecs.ggml.codec import quantize_rows

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 256  # quantised at once


def random_model(
    path: Path, parameters: int, kind: GGMLType, template: str = "{{ messages }}", vocabulary: int = 0
) -> Path:
    """A GGUF of about `parameters` normally distributed weights, quantised to `kind`; rows differ in deviation."""
    columns, rows = 2048, 8192
    names = [f"blk.{number}.ffn_up.weight" for number in range(max(1, round(parameters / columns / rows)))]
    tensors = [TensorInfo(name, (rows, columns), kind) for name in names]

    def encode(piece: tuple[int, int]) -> bytes:
        rng = np.random.default_rng(piece)
        deviations = 0.02 * np.exp(rng.normal(0, 0.3, (ROWS, 1)))
        weights = (rng.standard_normal((ROWS, columns), np.float32) * deviations).astype(np.float32)
        return quantize_rows(kind, weights).tobytes()

    with path.open("wb") as stream, ThreadPoolExecutor(2) as pool:
        metadata = {
            "general.architecture": string("llama"),
            "llama.block_count": u32(1),
            "tokenizer.ggml.tokens": array(
                ValueType.STRING, [f"{i * 2654435761 % 2**32:x}" for i in range(vocabulary)]
            ),
            "tokenizer.chat_template": string(template),
        }
        writer = GGUFWriter(stream, metadata, tensors)
        writer.write_header()
        for number, tensor in enumerate(tensors):
            for block in pool.map(encode, [(number, part) for part in range(rows // ROWS)]):
                writer.write(tensor.name, block)
        writer.close()
    return path


def sparse_model(path: Path, size: int) -> Path:
    """A GGUF of about `size` bytes that takes little room on disk: every eighth tensor random, the others zeros."""
    kind, columns, rows = GGMLType.Q5_K, 4096, 16384
    count = max(1, size // (rows * kind.row_bytes(columns)))
    tensors = [TensorInfo(f"blk.{number}.ffn_up.weight", (rows, columns), kind) for number in range(count)]
    with path.open("wb") as stream:
        writer = GGUFWriter(stream, {"general.architecture": string("llama"), "llama.block_count": u32(1)}, tensors)
        writer.write_header()
        for number, tensor in enumerate(writer.tensors[::8]):
            stream.seek(writer.data_start + tensor.offset)
            stream.write(np.random.default_rng(number).bytes(tensor.nbytes))
        stream.truncate(writer.total_bytes)
    return path
