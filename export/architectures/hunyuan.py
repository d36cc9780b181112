"""Hunyuan, dense and with experts: norms on queries and keys behind rope, and a base of rope stretched by `alpha`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgepack.errors import UnsupportedModelError
from edgepack.export.rules.decoder import (
    LAYER,
    LLAMA_NORMS,
    NO_ATTENTION_BIAS,
    SILU,
    WHOLE_HEADS,
    attention_rules,
    embedding_rules,
    feed_forward_rules,
    norm_rules,
    router_rule,
)
from edgepack.export.rules.experts import expert_rules
from edgepack.export.rules.family import Family, TensorRule
from edgepack.export.rules.metadata import common_metadata
from edgepack.export.rules.rope_factors import rope_number
from edgepack.gguf.types import Value, f32, u32

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig


def _metadata(config: ModelConfig, name: str) -> dict[str, Value]:
    rope, keys = config.rope, common_metadata(config, name)
    if rope.get("rope_type") == "dynamic" and rope.get("alpha"):
        # `compute_ntk_alpha_rope_parameters` of transformers: the same for every length of text
        width, alpha = config.head_dim, rope_number(rope, "alpha", config)
        base = rope_number(rope, "rope_theta", config, default=10000.0) * alpha ** (width / (width - 2))
        keys[f"{name}.rope.freq_base"] = f32(base)
    return keys


def _dense(config: ModelConfig) -> dict[str, Value]:
    return _metadata(config, "hunyuan-dense")


def _constant(config: ModelConfig, key: str) -> int:
    """A count that may stand as a list with an entry for each layer, all equal.

    Raises:
        UnsupportedModelError: they differ.
    """
    value = config.get(key)
    if isinstance(value, list) and value:
        if any(each != value[0] for each in value):
            raise UnsupportedModelError(f"{config.label}: {key} is {value!r}: llama.cpp needs the same in every layer")
        config = config.changed(**{key: value[0]})
    return config.count(key)


def _flat(config: ModelConfig) -> ModelConfig:
    """The counts of experts as single numbers, under the names that others give them."""
    return config.changed(
        num_experts=_constant(config, "num_experts"), num_experts_per_tok=_constant(config, "moe_topk")
    )


def _with_experts(config: ModelConfig) -> dict[str, Value]:
    width = u32(config.count("intermediate_size"))
    return _metadata(_flat(config), "hunyuan-moe") | {
        "hunyuan-moe.expert_feed_forward_length": width,
        "hunyuan-moe.expert_shared_feed_forward_length": width,
    }


_ATTENTION = (
    *embedding_rules(),
    *norm_rules(LLAMA_NORMS),
    *attention_rules(bias=False),
    TensorRule("blk.{i}.attn_q_norm.weight", LAYER + "self_attn.query_layernorm.weight", "h"),
    TensorRule("blk.{i}.attn_k_norm.weight", LAYER + "self_attn.key_layernorm.weight", "h"),
)

DENSE = Family(
    name="hunyuan-dense",
    classes=("HunYuanDenseV1ForCausalLM",),
    defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 2048},
    metadata=_dense,
    requirements=(SILU, WHOLE_HEADS, NO_ATTENTION_BIAS),
    tensors=(*_ATTENTION, *feed_forward_rules()),
)
EXPERTS = replace(
    DENSE,
    name="hunyuan-moe",
    classes=("HunYuanMoEV1ForCausalLM",),
    metadata=_with_experts,
    tensors=(
        *_ATTENTION,
        router_rule(LAYER + "mlp.gate.wg.weight"),
        *expert_rules(LAYER + "mlp.experts.", width="ff"),
        *feed_forward_rules(module="mlp.shared_mlp.", suffix="_shexp"),
    ),
)

FAMILIES = (DENSE, EXPERTS)
