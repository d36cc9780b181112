"""Makes random models of any shape as GGUFs, small ones to run and large ones as sparse files to plan with.

The weights mean nothing; names, shapes and metadata are those that llama.cpp demands of each architecture.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.gguf.types import GGMLType, TensorInfo, Value, ValueType, array, boolean, f32, string, u32
from edgepack.gguf.writer import GGUFWriter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SPM_UNKNOWN, SPM_NORMAL, SPM_CONTROL, SPM_BYTE = 2, 1, 3, 6  # llama_token_type
LETTERS = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,'!?"


@dataclass(frozen=True)
class Shape:
    """What decides a model's size.

    Attributes:
        architecture: llama, qwen2, qwen3, gemma2, gemma3, phi3 or gpt2.
        type: of the matrices; norms and biases are F32.
        n_vocab: 0 for a vocabulary of bytes and letters, with which text can be tokenized.
        experts: 0 for a dense model, else (llama only) as many experts, two of them used.
        window: of sliding attention (gemma2, gemma3).
        tied: the token embedding is also the output matrix.
    """

    architecture: str = "llama"
    layers: int = 2
    width: int = 64
    heads: int = 4
    kv_heads: int = 2
    head_width: int = 16
    feed_forward: int = 128
    n_vocab: int = 0
    context: int = 512
    type: GGMLType = GGMLType.F32
    output_type: GGMLType | None = None
    experts: int = 0
    window: int = 0
    tied: bool = False
    extra: dict[str, Value] = field(default_factory=dict)

    @property
    def vocabulary(self) -> int:
        """Tokens."""
        return self.n_vocab or 3 + 256 + len(LETTERS)


def byte_vocabulary() -> dict[str, Value]:
    """A SentencePiece vocabulary of control tokens, 256 bytes and some letters."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS]
    types = [SPM_UNKNOWN, SPM_CONTROL, SPM_CONTROL, *[SPM_BYTE] * 256, *[SPM_NORMAL] * len(LETTERS)]
    return {
        "tokenizer.ggml.model": string("llama"),
        "tokenizer.ggml.tokens": array(ValueType.STRING, tokens),
        "tokenizer.ggml.scores": array(ValueType.FLOAT32, [0.0] * 259 + [-float(i) for i in range(len(LETTERS))]),
        "tokenizer.ggml.token_type": array(ValueType.INT32, types),
        "tokenizer.ggml.bos_token_id": u32(1),
        "tokenizer.ggml.eos_token_id": u32(2),
        "tokenizer.ggml.unknown_token_id": u32(0),
        "tokenizer.ggml.add_bos_token": boolean(True),
        "tokenizer.ggml.add_space_prefix": boolean(True),
    }


def metadata(shape: Shape) -> dict[str, Value]:
    """All metadata of a model of `shape`."""
    name = shape.architecture
    keys = {
        "general.architecture": string(name),
        "general.name": string(f"random {name}"),
        f"{name}.block_count": u32(shape.layers),
        f"{name}.context_length": u32(shape.context),
        f"{name}.embedding_length": u32(shape.width),
        f"{name}.feed_forward_length": u32(shape.feed_forward),
        f"{name}.attention.head_count": u32(shape.heads),
        f"{name}.attention.head_count_kv": u32(shape.kv_heads),
        f"{name}.attention.key_length": u32(shape.head_width),
        f"{name}.attention.value_length": u32(shape.head_width),
        f"{name}.rope.dimension_count": u32(shape.head_width),
        f"{name}.rope.freq_base": f32(10000.0),
    }
    epsilon = "layer_norm_epsilon" if name == "gpt2" else "layer_norm_rms_epsilon"
    keys[f"{name}.attention.{epsilon}"] = f32(1e-5)
    if shape.window:
        keys[f"{name}.attention.sliding_window"] = u32(shape.window)
    if shape.experts:
        keys |= {f"{name}.expert_count": u32(shape.experts), f"{name}.expert_used_count": u32(2)}
    if shape.n_vocab:
        keys |= {"tokenizer.ggml.model": string("none"), f"{name}.vocab_size": u32(shape.n_vocab)}
    else:
        keys |= byte_vocabulary()
    return keys | shape.extra


def tensors(shape: Shape) -> list[TensorInfo]:
    """Every tensor of a model of `shape`, in file order."""
    width, vocabulary = shape.width, shape.vocabulary
    found = [_matrix(shape, "token_embd", vocabulary, width), *_norm(shape, "output_norm", width)]
    if shape.architecture == "gpt2":
        found.append(TensorInfo("position_embd.weight", (shape.context, width), GGMLType.F32))
    if not shape.tied and shape.architecture not in ("gemma2", "gemma3"):
        kind = shape.output_type or shape.type
        found.append(TensorInfo("output.weight", (vocabulary, width), kind))
    for layer in range(shape.layers):
        found += [
            TensorInfo(f"blk.{layer}.{tensor.name}", tensor.shape, tensor.type)
            for tensor in (*_attention(shape), *_feed_forward(shape))
        ]
    return found


def _matrix(shape: Shape, name: str, *dimensions: int) -> TensorInfo:
    return TensorInfo(f"{name}.weight", dimensions, shape.type)


def _vector(name: str, length: int) -> TensorInfo:
    return TensorInfo(name, (length,), GGMLType.F32)


def _norm(shape: Shape, name: str, length: int) -> Iterator[TensorInfo]:
    yield _vector(f"{name}.weight", length)
    if shape.architecture == "gpt2":
        yield _vector(f"{name}.bias", length)


def _attention(shape: Shape) -> Iterator[TensorInfo]:
    q, kv = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    name, width = shape.architecture, shape.width
    yield from _norm(shape, "attn_norm", width)
    if name in ("gpt2", "phi3"):
        yield _matrix(shape, "attn_qkv", q + 2 * kv, width)
    else:
        yield from (_matrix(shape, f"attn_{part}", rows, width) for part, rows in (("q", q), ("k", kv), ("v", kv)))
    if name == "qwen2":
        yield from (_vector(f"attn_{part}.bias", rows) for part, rows in (("q", q), ("k", kv), ("v", kv)))
    if name == "gpt2":
        yield from (_vector("attn_qkv.bias", q + 2 * kv), _vector("attn_output.bias", width))
    if name in ("qwen3", "gemma3"):
        yield from (_vector(f"attn_{part}_norm.weight", shape.head_width) for part in "qk")
    if name in ("gemma2", "gemma3"):
        yield _vector("post_attention_norm.weight", width)
    yield _matrix(shape, "attn_output", width, q)


def _feed_forward(shape: Shape) -> Iterator[TensorInfo]:
    name, width, inner = shape.architecture, shape.width, shape.feed_forward
    yield from _norm(shape, "ffn_norm", width)
    if shape.experts:
        yield TensorInfo("ffn_gate_inp.weight", (shape.experts, width), GGMLType.F32)
        yield from (_matrix(shape, f"ffn_{part}_exps", shape.experts, inner, width) for part in ("gate", "up"))
        yield _matrix(shape, "ffn_down_exps", shape.experts, width, inner)
        return
    if name not in ("gpt2", "phi3"):
        yield _matrix(shape, "ffn_gate", inner, width)
    yield _matrix(shape, "ffn_up", inner * 2 if name == "phi3" else inner, width)
    yield _matrix(shape, "ffn_down", width, inner)
    if name == "gpt2":
        yield from (_vector("ffn_up.bias", inner), _vector("ffn_down.bias", width))
    if name in ("gemma2", "gemma3"):
        yield _vector("post_ffw_norm.weight", width)


def write_random(path: Path, shape: Shape, seed: int = 0) -> Path:
    """Write a model with small random weights, quantised by ggml where `shape.type` has blocks."""
    rng = np.random.default_rng(seed)
    with path.open("wb") as stream:
        writer = GGUFWriter(stream, metadata(shape), tensors(shape))
        writer.write_header()
        for tensor in writer.tensors:
            writer.write(tensor.name, _random_tensor(rng, tensor))
        writer.close()
    return path


def _random_tensor(rng: np.random.Generator, tensor: TensorInfo) -> bytes:
    if tensor.name.endswith("norm.weight"):
        return np.ones(tensor.shape, np.float32).tobytes()
    values = rng.standard_normal(tensor.shape, np.float32) * (tensor.shape[-1] ** -0.5)
    kinds: dict[GGMLType, Any] = {GGMLType.F32: np.float32, GGMLType.F16: np.float16}
    if tensor.type in kinds:
        return bytes(values.astype(kinds[tensor.type]).tobytes())
    from edgepack.quant.codecs.ggml.codec import quantize_rows

    return bytes(quantize_rows(tensor.type, values.reshape(-1, tensor.shape[-1])))


def write_sparse(path: Path, shape: Shape) -> Path:
    """Write only the header and the full length: a file of any size that takes no disk, to plan with."""
    with path.open("wb") as stream:
        writer = GGUFWriter(stream, metadata(shape), tensors(shape))
        writer.write_header()
        stream.truncate(writer.total_bytes)
    return path
