"""GGUFs of known content for the tests of the archive."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from edgepack.gguf.types import GGMLType, TensorInfo, Value, ValueType, array, string, u32
from edgepack.gguf.writer import GGUFWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


def tensor_bytes(rng: np.random.Generator, info: TensorInfo) -> bytes:
    """Bytes such as a quantiser's: not uniform, so that there is something to compress."""
    draws = np.frombuffer(rng.bytes(2 * info.nbytes), np.uint8).reshape(2, info.nbytes)
    return (draws[0] & draws[1]).tobytes()


@pytest.fixture
def write_gguf(tmp_path: Path) -> Callable[..., Path]:
    """Writes a GGUF of the given tensors (name → (rows, columns, type)) and returns its path."""

    def write(
        tensors: Mapping[str, tuple[int, int, GGMLType]],
        name: str = "model.gguf",
        template: str = "{{ messages }}",
        seed: int = 1,
    ) -> Path:
        rng = np.random.default_rng(seed)
        infos = [TensorInfo(key, (rows, columns), kind) for key, (rows, columns, kind) in tensors.items()]
        metadata: dict[str, Value] = {
            "general.architecture": string("llama"),
            "llama.block_count": u32(1),
            "tokenizer.ggml.tokens": array(ValueType.STRING, [f"token {i}" for i in range(2000)]),
            "tokenizer.chat_template": string(template),
        }
        path = tmp_path / name
        with path.open("wb") as stream:
            writer = GGUFWriter(stream, metadata, infos)
            writer.write_header()
            for info in infos:
                writer.write(info.name, tensor_bytes(rng, info))
            writer.close()
        return path

    return write


@pytest.fixture
def gguf(write_gguf: Callable[..., Path]) -> Path:
    """A small GGUF with a few types, ragged sizes and a tensor of several chunks."""
    return write_gguf(
        {
            "token_embd.weight": (64, 512, GGMLType.Q6_K),
            "blk.0.attn_norm.weight": (1, 511, GGMLType.F32),
            "blk.0.attn_q.weight": (1500, 2048, GGMLType.Q5_K),
            "blk.0.attn_k.weight": (40, 96, GGMLType.Q8_0),
            "blk.0.attn_v.weight": (33, 100, GGMLType.BF16),
        }
    )
