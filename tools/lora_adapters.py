"""Makes GGUF LoRA adapters for random models, and the model that an adapter would be merged into."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgepack.gguf.reader import read_header
from edgepack.gguf.types import GGMLType, TensorInfo, f32, string
from edgepack.gguf.writer import GGUFWriter

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray


def factors(rows: int, columns: int, rank: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(A [rank, columns], B [rows, rank]) of visible size."""
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((rank, columns), np.float32) / np.float32(columns**0.5),
        rng.standard_normal((rows, rank), np.float32),
    )


def write_adapter(path: Path, model: Path, names: Sequence[str], rank: int = 4, alpha: float = 4.0) -> Path:
    """An adapter for the matrices `names` of the F32 model at `model`."""
    tensors, contents = [], []
    for number, name in enumerate(names):
        rows, columns = read_header(model).tensor(name).shape
        for suffix, matrix in zip("ab", factors(rows, columns, rank, number), strict=True):
            tensors.append(TensorInfo(f"{name}.lora_{suffix}", matrix.shape, GGMLType.F32))
            contents.append(matrix)
    metadata = {
        "general.architecture": string("llama"),
        "general.type": string("adapter"),
        "adapter.type": string("lora"),
        "adapter.lora.alpha": f32(alpha),
    }
    with path.open("wb") as stream:
        writer = GGUFWriter(stream, metadata, tensors)
        writer.write_header()
        for tensor, matrix in zip(tensors, contents, strict=True):
            writer.write(tensor.name, matrix.tobytes())
        writer.close()
    return path


def write_merged(
    path: Path, model: Path, names: Sequence[str], rank: int = 4, alpha: float = 4.0, scale: float = 1.0
) -> Path:
    """The F32 model at `model` with W + scale · alpha / rank · B A in place of each of `names`."""
    header, raw = read_header(model), bytearray(model.read_bytes())
    for number, name in enumerate(names):
        tensor = header.tensor(name)
        start = header.data_start + tensor.offset
        weight = np.frombuffer(raw, np.float32, tensor.nbytes // 4, start).reshape(tensor.shape)
        a, b = factors(*tensor.shape, rank, number)
        merged = weight + np.float32(scale * alpha / rank) * (b @ a)
        raw[start : start + tensor.nbytes] = merged.astype(np.float32).tobytes()
    path.write_bytes(raw)
    return path
