"""GLM-4.5, 4.6 and 4.7: a few dense layers, then experts chosen by sigmoid scores with a bias, and a shared one.

The layers after the last (multi-token prediction) are taken over where the checkpoint has them; llama.cpp skips
them unless it is asked to draft with them, and transformers does not write them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgepack.export.rules.decoder import (
    LAYER,
    SILU,
    attention_rules,
    embedding_rules,
    feed_forward_rules,
    head_norm_rules,
    norm_rules,
    router_rule,
)
from edgepack.export.rules.experts import expert_rules
from edgepack.export.rules.family import Family, Requirement, TensorRule, standard_dimensions
from edgepack.export.rules.metadata import common_metadata
from edgepack.gguf.types import Value, boolean, f32, u32

if TYPE_CHECKING:
    from collections.abc import Collection

    from edgepack.export.config import ModelConfig

_COUNTS = ("num_nextn_predict_layers", "num_mtp_layers")
_MOST_EXTRA_LAYERS = 16  # published models have one
_SIGMOID = 2  # LLAMA_EXPERT_GATING_FUNC_TYPE_SIGMOID


def _extra_layers(config: ModelConfig) -> int:
    return config.bounded("layers of prediction", _MOST_EXTRA_LAYERS, *_COUNTS) if config.get(*_COUNTS) else 0


def _observed(names: Collection[str]) -> dict[str, int]:
    """How many layers of prediction there are; transformers writes none, whatever the configuration says."""
    return {_COUNTS[0]: sum(name.endswith(".eh_proj.weight") for name in names)}


def _blocks(config: ModelConfig) -> int:
    return config.n_layers + _extra_layers(config)


def _dense_layers(config: ModelConfig) -> int:
    return config.count("first_k_dense_replace") if config.get("first_k_dense_replace") else 0


def _in_trunk(config: ModelConfig, layer: int) -> bool:
    return layer < config.n_layers


def _after_trunk(config: ModelConfig, layer: int) -> bool:
    return layer >= config.n_layers


def _dense(config: ModelConfig, layer: int) -> bool:
    return layer < _dense_layers(config)


def _has_experts(config: ModelConfig, layer: int) -> bool:
    return _dense_layers(config) <= layer < config.n_layers


def _metadata(config: ModelConfig) -> dict[str, Value]:
    keys = {
        "block_count": u32(_blocks(config)),
        "expert_feed_forward_length": u32(config.count("moe_intermediate_size")),
        "expert_shared_count": u32(config.count("n_shared_experts")),
        "leading_dense_block_count": u32(_dense_layers(config)),
        "expert_gating_func": u32(_SIGMOID),
        "expert_weights_scale": f32(config.number("routed_scaling_factor")),
        "expert_weights_norm": boolean(config.flag("norm_topk_prob")),
        "expert_group_count": u32(config.count("n_group")),
        "expert_group_used_count": u32(config.count("topk_group")),
        "nextn_predict_layers": u32(_extra_layers(config)),
    }
    return common_metadata(config, "glm4moe") | {f"glm4moe.{key}": value for key, value in keys.items()}


def _dimensions(config: ModelConfig) -> dict[str, int]:
    width = config.count("moe_intermediate_size")
    return standard_dimensions(config) | {
        "moe": width,
        "shared": width * config.count("n_shared_experts"),
        "2d": 2 * config.hidden,
    }


_ATTENTION = (
    *norm_rules({"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"}),
    *attention_rules(),
    *(replace(rule, when=lambda config, _layer: config.flag("use_qk_norm")) for rule in head_norm_rules()),
)
_EXPERTS = (
    router_rule(LAYER + "mlp.gate.weight"),
    TensorRule("blk.{i}.exp_probs_b.bias", LAYER + "mlp.gate.e_score_correction_bias", "e"),
    *expert_rules(LAYER + "mlp.experts."),
    *feed_forward_rules(module="mlp.shared_experts.", suffix="_shexp", width="shared"),
)
_PREDICTION = (
    TensorRule("blk.{i}.nextn.eh_proj.weight", LAYER + "eh_proj.weight", "d 2d"),
    TensorRule("blk.{i}.nextn.enorm.weight", LAYER + "enorm.weight", "d"),
    TensorRule("blk.{i}.nextn.hnorm.weight", LAYER + "hnorm.weight", "d"),
    TensorRule("blk.{i}.nextn.embed_tokens.weight", LAYER + "embed_tokens.weight", "v d"),
    TensorRule("blk.{i}.nextn.shared_head_norm.weight", LAYER + "shared_head.norm.weight", "d"),
    TensorRule("blk.{i}.nextn.shared_head_head.weight", LAYER + "shared_head.head.weight", "v d"),
)


def _trunk_attention(rule: TensorRule) -> TensorRule:
    own = rule.when
    if own is None:
        return replace(rule, when=_in_trunk)
    return replace(rule, when=lambda config, layer: _in_trunk(config, layer) and own(config, layer))


FAMILY = Family(
    name="glm4moe",
    classes=("Glm4MoeForCausalLM",),
    defaults={
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "partial_rotary_factor": 0.5,
        "moe_intermediate_size": 1408,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "n_routed_experts": 128,
        "routed_scaling_factor": 1.0,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
    },
    metadata=_metadata,
    dimensions=_dimensions,
    blocks=_blocks,
    observed=_observed,
    requirements=(SILU, Requirement("scoring_func", ("sigmoid",), "its graph scores experts by sigmoid")),
    tensors=(
        *embedding_rules(),
        *map(_trunk_attention, _ATTENTION),
        *feed_forward_rules(when=_dense),
        *(replace(rule, when=_has_experts) for rule in _EXPERTS),
        *(replace(rule, when=_after_trunk, optional=True) for rule in (*_ATTENTION, *_EXPERTS, *_PREDICTION)),
    ),
)
