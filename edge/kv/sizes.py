"""What a cache of each type takes: bytes a token, bytes at a context. What it costs in fidelity is `measure`'s."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.edge.fit.memory import MemoryRequest, kv_layer_bytes
from edgepack.edge.llama.options import kv_type, kv_types
from edgepack.errors import UnsupportedModelError

if TYPE_CHECKING:
    from edgepack.edge.fit.shape import ModelShape

BASELINE = "f16"
# K and V alike, and mixtures: keys are multiplied with what asks for them, values only added up.
USUAL = ("f16", "q8_0", "q8_0/q5_1", "q8_0/q4_0", "q5_1", "q5_0", "q5_0/q4_0", "q4_1", "q4_0", "q4_0/q8_0", "iq4_nl")
_ROTATION = 64  # llama.cpp turns a quantised K or V whose head is a multiple of this by a Hadamard matrix


def check_attention(shape: ModelShape, what: str) -> None:
    """Check that a model keeps keys and values.

    Args:
        shape: the model.
        what: names it in the message.

    Raises:
        UnsupportedModelError: it does not; the text says what it keeps.
    """
    if any(layer.k for layer in shape.layers):
        return
    state = sum(layer.state for layer in shape.layers)
    kept = f"it keeps a state of {state:,} bytes at any context" if state else "it keeps nothing of a text"
    raise UnsupportedModelError(f"{what}: {shape.architecture} has no keys and values to cache: {kept}")


def row_bytes(shape: ModelShape, name: str) -> int:
    """Bytes that one token's keys and values take in all layers, while it is within the window of windowed ones.

    Args:
        shape: the model.
        name: of a cache, as `kv_types` reads it.

    Raises:
        UsageError: an unknown type.
    """
    k, v = map(kv_type, kv_types(name))
    return sum(k.row_bytes(layer.k) + v.row_bytes(layer.v) for layer in shape.layers)


def cache_bytes(shape: ModelShape, name: str, ctx: int, *, together: int = 512) -> int:
    """Bytes of llama.cpp's cache at a context of `ctx` tokens: windows, padding and recurrent states included.

    Args:
        shape: the model.
        name: of a cache.
        ctx: tokens.
        together: tokens computed at once, which windowed layers keep beside their window.
    """
    k, v = kv_types(name)
    request = MemoryRequest(ctx, together, together, k, v)
    return sum(kv_layer_bytes(shape, layer, request) for layer in shape.layers)


def refusal(shape: ModelShape, name: str) -> str:
    """Why llama.cpp would not open a cache of this name; empty where it would.

    Raises:
        UsageError: an unknown type.
    """
    for side, kind, head in zip("KV", kv_types(name), (shape.head_k, shape.head_v), strict=True):
        if head % (block := kv_type(kind).block_size):
            return f"blocks of {block} do not divide heads of {head} ({side} as {kind})"
    return ""


def rotated(shape: ModelShape, name: str) -> tuple[bool, bool]:
    """Whether llama.cpp turns K, and V, by a Hadamard matrix before it rounds them (llama-kv-cache.cpp, attn_rot)."""
    k, v = kv_types(name)
    return (
        kv_type(k).is_quantized and shape.head_k % _ROTATION == 0,
        kv_type(v).is_quantized and shape.head_v % _ROTATION == 0,
    )
