"""The architecture keys that most families share, in the order in which llama.cpp's converter writes them.

General keys (`general.*`) are left to `export.naming`, the vocabulary to `export.tokenizer`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepack.errors import UnsupportedModelError
from edgepack.gguf.types import Value, f32, string, u32

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig


def common_metadata(config: ModelConfig, name: str) -> dict[str, Value]:
    """Depth, width, heads, norms, rope and experts of a decoder under the prefix `name`.

    Raises:
        UnsupportedModelError: rope scaling of a type that llama.cpp does not have.
    """
    keys: dict[str, Value] = {
        "block_count": u32(config.n_layers),
        "context_length": u32(config.count("max_position_embeddings", "n_ctx", "n_positions")),
        "embedding_length": u32(config.hidden),
    }
    if config.get("intermediate_size", "n_inner"):
        keys["feed_forward_length"] = u32(config.count("intermediate_size", "n_inner"))
    keys["attention.head_count"] = u32(config.n_heads)
    keys["attention.head_count_kv"] = u32(config.n_kv_heads)
    keys |= rope_metadata(config)
    if config.get("rms_norm_eps"):
        keys["attention.layer_norm_rms_epsilon"] = f32(config.number("rms_norm_eps"))
    if config.get("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"):
        epsilon = config.number("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")
        keys["attention.layer_norm_epsilon"] = f32(epsilon)
    if config.n_experts:
        keys["expert_count"] = u32(config.n_experts)
        keys["expert_used_count"] = u32(config.count("num_experts_per_tok"))
    keys["attention.key_length"] = u32(config.head_dim)
    keys["attention.value_length"] = u32(config.head_dim)
    keys["vocab_size"] = u32(config.vocab_size)
    return {f"{name}.{key}": value for key, value in keys.items()}


def rope_metadata(config: ModelConfig) -> dict[str, Value]:
    """Rope base and scaling, without the prefix.

    Raises:
        UnsupportedModelError: a scaling type that has no counterpart.
    """
    rope = config.rope
    keys: dict[str, Value] = {}
    if rope.get("rope_theta") is not None:
        keys["rope.freq_base"] = f32(float(rope["rope_theta"]))
    kind = rope.get("rope_type", "default")
    if kind in ("default", "llama3"):  # llama3's factors are a tensor: see rope_factors
        return keys
    if kind not in ("linear", "yarn", "longrope", "su"):
        raise UnsupportedModelError(f"{config.label}: rope type '{kind}' is not known to llama.cpp")
    keys["rope.scaling.type"] = string("longrope" if kind == "su" else kind)
    return keys | (_scaling(rope) if kind in ("linear", "yarn") else {})


_YARN = (
    ("extrapolation_factor", "yarn_ext_factor"),
    ("attention_factor", "yarn_attn_factor"),
    ("beta_fast", "yarn_beta_fast"),
    ("beta_slow", "yarn_beta_slow"),
)


def _scaling(rope: Any) -> dict[str, Value]:
    keys = {"rope.scaling.factor": f32(float(rope["factor"]))}
    if rope["rope_type"] == "yarn":
        if rope.get("original_max_position_embeddings"):
            keys["rope.scaling.original_context_length"] = u32(int(rope["original_max_position_embeddings"]))
        keys |= {f"rope.scaling.{ours}": f32(float(rope[key])) for key, ours in _YARN if rope.get(key) is not None}
    return keys
