"""Low-rank factors under GGUF names as a LoRA adapter that llama.cpp applies at run time, and its exact size.

Layout: llama.cpp's src/llama-adapter.cpp. Where factors come from is left to the caller; PEFT adapters are
`export.lora.gguf`'s.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from edgepack.files.output import atomic_output
from edgepack.gguf import keys
from edgepack.gguf.types import GGMLType, TensorInfo, Value, f32, string
from edgepack.gguf.writer import GGUFWriter
from edgepack.quant.codecs.ggml.codec import quantize_rows

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    Pair = tuple[NDArray[np.float32], NDArray[np.float32]]


def adapter_infos(shapes: Mapping[str, tuple[int, int]], ranks: Mapping[str, int], kind: GGMLType) -> list[TensorInfo]:
    """Header entries of an adapter.

    Args:
        shapes: GGUF name → (out, in).
        ranks: GGUF name → rank.
        kind: F32, F16 or BF16; Q8_0 needs ranks of a multiple of 32.
    """
    infos = []
    for name, (out, columns) in shapes.items():
        infos.append(TensorInfo(f"{name}.lora_a", (ranks[name], columns), kind))
        infos.append(TensorInfo(f"{name}.lora_b", (out, ranks[name]), kind))
    return infos


def adapter_metadata(architecture: Value, name: str, extra: Mapping[str, Value]) -> dict[str, Value]:
    """Keys of an adapter whose factors are added with scale 1."""
    return {
        keys.ARCHITECTURE: architecture,
        keys.TYPE: string("adapter"),
        keys.NAME: string(name),
        keys.ADAPTER_TYPE: string("lora"),
        keys.ADAPTER_ALPHA: f32(0.0),  # llama.cpp then takes the user's scale alone, 1 by default
        **extra,
    }


def adapter_bytes(infos: list[TensorInfo], metadata: Mapping[str, Value]) -> int:
    """Exact length of the file."""
    return GGUFWriter(BytesIO(), metadata, infos).total_bytes


def write_low_rank(
    factors: Mapping[str, Pair], metadata: Mapping[str, Value], path: Path, kind: GGMLType = GGMLType.F16
) -> int:
    """Write factors to `path`, whole or not at all.

    Args:
        factors: GGUF name → (left [out, rank], right [rank, in]); their product is added to the tensor.
        metadata: as `adapter_metadata`.
        path: the file.
        kind: F32, F16 or BF16.

    Returns:
        The file's length in bytes.
    """
    shapes = {name: (left.shape[0], right.shape[1]) for name, (left, right) in factors.items()}
    infos = adapter_infos(shapes, {name: right.shape[0] for name, (_, right) in factors.items()}, kind)
    with atomic_output(path, adapter_bytes(infos, metadata)) as stream:
        writer = GGUFWriter(stream, metadata, infos)
        writer.write_header()
        for name, (left, right) in factors.items():
            writer.write(f"{name}.lora_a", quantize_rows(kind, np.ascontiguousarray(right)).data)
            writer.write(f"{name}.lora_b", quantize_rows(kind, np.ascontiguousarray(left)).data)
        writer.close()
        return writer.total_bytes
