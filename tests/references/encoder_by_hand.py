"""Two encoders that transformers does not have, by their definition in NumPy's float64: the hidden state of every token.

Jina's embeddings 2 (`modeling_bert.py` of jinaai/jina-bert-implementation: alibi, a gate before the activation's
partner) and nomic-embed-text 2 (`modeling_hf_nomic_bert.py`: rope, experts in every second layer).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Weights = Mapping[str, Array]

EPSILON = 0.01
_ERF = np.vectorize(math.erf)


def jina_2(weights: Weights, ids: NDArray[np.int64], heads: int, layers: int) -> Array:
    """[tokens, d]."""
    x = _normed(
        weights["embeddings.word_embeddings.weight"][ids] + weights["embeddings.token_type_embeddings.weight"][0],
        weights,
        "embeddings.LayerNorm",
    )
    distance = np.abs(np.arange(len(ids))[:, None] - np.arange(len(ids)))
    slopes = 2.0 ** (-8.0 * (np.arange(heads) + 1) / heads)  # of a power of two
    penalty = -slopes[:, None, None] * distance
    for i in range(layers):
        layer = f"encoder.layer.{i}."
        q, k, v = (_affine(x, weights, f"{layer}attention.self.{part}") for part in ("query", "key", "value"))
        mixed = _attention(*(_split(each, heads) for each in (q, k, v)), penalty)
        x = _normed(
            x + _affine(mixed, weights, layer + "attention.output.dense"), weights, layer + "attention.output.LayerNorm"
        )
        gate, up = np.split(x @ weights[layer + "mlp.gated_layers.weight"].T, 2, axis=1)
        x = _normed(x + _affine(_gelu(gate) * up, weights, layer + "mlp.wo"), weights, layer + "mlp.layernorm")
    return x


def nomic_2(
    weights: Weights, ids: NDArray[np.int64], heads: int, layers: int, *, experts: int, used: int, base: float
) -> Array:
    """[tokens, d]."""
    x = weights["embeddings.word_embeddings.weight"][ids] + weights["embeddings.token_type_embeddings.weight"][0]
    x = _normed(x, weights, "emb_ln")
    for i in range(layers):
        layer = f"encoder.layers.{i}."
        q, k, v = (_split(each, heads) for each in np.split(_affine(x, weights, layer + "attn.Wqkv"), 3, axis=1))
        mixed = _attention(_turned(q, base), _turned(k, base), v, 0.0)
        x = _normed(x + _affine(mixed, weights, layer + "attn.out_proj"), weights, layer + "norm1")
        if i % 2 == 1:
            more = _mixture(x, weights, layer + "mlp.", experts, used)
        else:
            more = _affine(_gelu(_affine(x, weights, layer + "mlp.fc1")), weights, layer + "mlp.fc2")
        x = _normed(x + more, weights, layer + "norm2")
    return x


def _mixture(x: Array, weights: Weights, module: str, experts: int, used: int) -> Array:
    """Experts weighed by the softmax of all of them, not of those that are chosen."""
    scores = _softmax(x @ weights[module + "router.layer.weight"].T)
    first, second = (weights[f"{module}experts.mlp.{name}"].reshape(experts, -1, x.shape[1]) for name in ("w1", "w2"))
    found = np.zeros_like(x)
    for token, chosen in enumerate(np.argsort(-scores, axis=1)[:, :used]):
        for expert in chosen:
            found[token] += scores[token, expert] * (_gelu(first[expert] @ x[token]) @ second[expert])
    return found


def _affine(x: Array, weights: Weights, name: str) -> Array:
    return x @ weights[name + ".weight"].T + weights[name + ".bias"]


def _normed(x: Array, weights: Weights, name: str) -> Array:
    centred = x - x.mean(1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(1, keepdims=True) + EPSILON)
    return scaled * weights[name + ".weight"] + weights[name + ".bias"]


def _split(x: Array, heads: int) -> Array:
    return x.reshape(len(x), heads, -1).swapaxes(0, 1)


def _attention(q: Array, k: Array, v: Array, penalty: Array | float) -> Array:
    scores = _softmax(q @ k.swapaxes(1, 2) / math.sqrt(q.shape[2]) + penalty)
    return (scores @ v).swapaxes(0, 1).reshape(q.shape[1], -1)


def _turned(x: Array, base: float) -> Array:
    """Rope on halves: [heads, tokens, width]."""
    half = x.shape[2] // 2
    angles = np.arange(x.shape[1])[:, None] * base ** (-np.arange(half) / half)
    first, second = x[:, :, :half], x[:, :, half:]
    return np.concatenate(
        (first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)), axis=2
    )


def _softmax(x: Array) -> Array:
    raised = np.exp(x - x.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def _gelu(x: Array) -> Array:
    return 0.5 * x * (1 + _ERF(x / math.sqrt(2)))


def random_weights(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Matrices of unit gain; norms around one, biases around zero."""
    generator = np.random.default_rng(seed)
    found = {}
    for name, shape in shapes.items():
        drawn = generator.standard_normal(shape) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.3)
        around = 1.0 if len(shape) == 1 and name.endswith("weight") else 0.0
        found[name] = (drawn + around).astype(np.float32)
    return found
