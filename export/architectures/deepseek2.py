"""DeepSeek 2 and 3, GLM-4.7-Flash, Mistral 4: attention through latents, some dense layers, then experts, some shared.

Layers of prediction behind the last are taken over where the checkpoint has them; llama.cpp drafts with one.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgepack.errors import CheckpointError, UnsupportedModelError
from edgepack.export.rules.backwards import Backwards
from edgepack.export.rules.decoder import (
    LAYER,
    LLAMA_NORMS,
    NO_ATTENTION_BIAS,
    SILU,
    embedding_rules,
    feed_forward_rules,
    norm_rules,
    restricted,
    router_rule,
)
from edgepack.export.rules.experts import expert_rules
from edgepack.export.rules.family import Family, Requirement, TensorRule
from edgepack.export.rules.latent_attention import (
    has_query_latent,
    latent_dimensions,
    latent_limits,
    latent_rules,
    latent_settings,
    query_width,
    with_rope_heads,
    yarn_scales,
)
from edgepack.export.rules.metadata import common_metadata
from edgepack.export.rules.rope_factors import rope_number
from edgepack.gguf.types import Value, boolean, f32, u32

if TYPE_CHECKING:
    from collections.abc import Collection

    from edgepack.export.config import ModelConfig
    from edgepack.export.rules.backwards import Header, Settings

_PREDICTS = re.compile(r"model\.layers\.\d+\.eh_proj\.weight")
_SOFTMAX, _SIGMOID = 1, 2  # enum llama_expert_gating_func_type
_WITHOUT_QUERY_LATENT = (26, 27)  # layers by which llama.cpp knows that queries have no latent


def _extra_layers(config: ModelConfig) -> int:
    return config.count("layers_of_prediction") if config.get("layers_of_prediction") else 0


def _prediction_layers(names: Collection[str]) -> dict[str, Any]:
    return {
        "layers_of_prediction": sum(re.fullmatch(r"model\.layers\.\d+\.eh_proj\.weight", n) is not None for n in names)
    }


def _blocks(config: ModelConfig) -> int:
    return config.n_layers + _extra_layers(config)


def _dense_layers(config: ModelConfig) -> int:
    kinds = config.get("mlp_layer_types")
    if kinds is None:
        return config.count("first_k_dense_replace") if config.get("first_k_dense_replace") else 0
    if not isinstance(kinds, list) or len(kinds) != config.n_layers:
        raise CheckpointError(f"{config.label}: mlp_layer_types: expected a list of {config.n_layers}, got {kinds!r}")
    dense = kinds.count("dense")
    if kinds != ["dense"] * dense + ["sparse"] * (len(kinds) - dense):
        raise UnsupportedModelError(
            f"{config.label}: mlp_layer_types is {kinds!r}: llama.cpp needs dense layers first, then sparse ones"
        )
    return dense


def _dense(config: ModelConfig, layer: int) -> bool:
    return layer < _dense_layers(config)


def _has_experts(config: ModelConfig, layer: int) -> bool:
    return not _dense(config, layer)


def _after_trunk(config: ModelConfig, layer: int) -> bool:
    return layer >= config.n_layers


def _metadata(config: ModelConfig, gating: int) -> dict[str, Value]:
    if has_query_latent(config) and config.n_layers in _WITHOUT_QUERY_LATENT:
        raise UnsupportedModelError(
            f"{config.label}: q_lora_rank with {config.n_layers} layers: llama.cpp takes such a model for one without"
        )
    latent, turned = config.count("kv_lora_rank"), config.count("qk_rope_head_dim")
    keys = {
        "block_count": u32(_blocks(config)),
        # With the latent in the cache all heads share one key and one value.
        "attention.head_count_kv": u32(1),
        "attention.key_length": u32(latent + turned),
        "attention.value_length": u32(latent),
        "attention.key_length_mla": u32(query_width(config)),
        "attention.value_length_mla": u32(config.count("v_head_dim")),
        "attention.kv_lora_rank": u32(latent),
        "attention.q_lora_rank": u32(config.count("q_lora_rank") if has_query_latent(config) else 0),
        "leading_dense_block_count": u32(_dense_layers(config)),
        "expert_feed_forward_length": u32(config.count("moe_intermediate_size")),
        "expert_shared_count": u32(config.count("n_shared_experts")),
        "expert_weights_scale": f32(config.number("routed_scaling_factor")),
        "expert_weights_norm": boolean(gating == _SIGMOID and config.flag("norm_topk_prob")),
        "expert_gating_func": u32(gating),
    }
    if _extra_layers(config):
        keys["nextn_predict_layers"] = u32(_extra_layers(config))
    keys |= _groups(config) | yarn_scales(config)
    common = common_metadata(with_rope_heads(config), "deepseek2")
    return common | {f"deepseek2.{key}": value for key, value in keys.items()}


def _groups(config: ModelConfig) -> dict[str, Value]:
    """Experts are chosen from some groups alone; nothing where all groups are taken."""
    groups, used = config.count("n_group", default=1), config.count("topk_group", default=1)
    if groups == used or groups == 1:
        return {}
    return {"expert_group_count": u32(groups), "expert_group_used_count": u32(used)}


def _softmax_metadata(config: ModelConfig) -> dict[str, Value]:
    return _metadata(config.changed(n_group=None), _SOFTMAX)  # greedy, whatever groups there are


def _sigmoid_metadata(config: ModelConfig) -> dict[str, Value]:
    return _metadata(config, _SIGMOID)


def _dimensions(config: ModelConfig) -> dict[str, int]:
    width = config.count("moe_intermediate_size")
    return latent_dimensions(config) | {
        "moe": width,
        "shared": width * config.count("n_shared_experts"),
        "2d": 2 * config.hidden,
    }


_EXPERTS = (
    router_rule(LAYER + "mlp.gate.weight"),
    *expert_rules(LAYER + "mlp.experts."),
    *feed_forward_rules(module="mlp.shared_experts.", suffix="_shexp", width="shared"),
)
_BIASED = TensorRule("blk.{i}.exp_probs_b.bias", LAYER + "mlp.gate.e_score_correction_bias", "e")
_PREDICTION = (
    TensorRule("blk.{i}.nextn.eh_proj.weight", LAYER + "eh_proj.weight", "d 2d"),
    TensorRule("blk.{i}.nextn.enorm.weight", LAYER + "enorm.weight", "d"),
    TensorRule("blk.{i}.nextn.hnorm.weight", LAYER + "hnorm.weight", "d"),
    TensorRule("blk.{i}.nextn.embed_tokens.weight", LAYER + "embed_tokens.weight", "v d", optional=True),
    TensorRule("blk.{i}.nextn.shared_head_norm.weight", LAYER + "shared_head.norm.weight", "d", optional=True),
    TensorRule("blk.{i}.nextn.shared_head_head.weight", LAYER + "shared_head.head.weight", "v d", optional=True),
)
_TENSORS = (
    *embedding_rules(),
    *norm_rules(LLAMA_NORMS),
    *latent_rules(split=True),
    *feed_forward_rules(when=_dense),
    *restricted(_EXPERTS, _has_experts),
)
_DEFAULTS: dict[str, Any] = {
    "rms_norm_eps": 1e-6,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
}


def _settings(header: Header) -> Settings:
    return latent_settings(header) | {
        "head_dim": header.count("rope.dimension_count"),
        "num_key_value_heads": header.count("attention.head_count"),
        "n_group": header.count("expert_group_count") or 1,
        "topk_group": header.count("expert_group_used_count") or 1,
        "first_k_dense_replace": header.count("leading_dense_block_count"),
    }


def _first_settings(header: Header) -> Settings:
    return {**_settings(header), "topk_method": "greedy", "num_experts_per_tok": header.count("expert_used_count")}


V2 = Family(
    name="deepseek2",
    classes=("DeepseekV2ForCausalLM",),
    defaults={
        **_DEFAULTS,
        "max_position_embeddings": 2048,
        "q_lora_rank": 1536,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "routed_scaling_factor": 1.0,
        "moe_intermediate_size": 1407,
        "first_k_dense_replace": 0,
    },
    metadata=_softmax_metadata,
    backwards=Backwards(_first_settings),
    dimensions=_dimensions,
    blocks=_blocks,
    remarks=latent_limits,
    requirements=(
        SILU,
        NO_ATTENTION_BIAS,
        Requirement("mlp_bias", (False,), "its graph has no such bias"),
        Requirement("topk_method", ("greedy",), "its graph scores a group of experts by its best two, not by one"),
        Requirement("scoring_func", ("softmax",), "transformers scores experts of this class by softmax"),
        Requirement("norm_topk_prob", (False,), "transformers leaves the weights of this class as they are"),
        Requirement("moe_layer_freq", (1,), "every layer of its graph behind the dense ones has experts"),
    ),
    tensors=_TENSORS,
)
V3 = replace(
    V2,
    classes=("DeepseekV3ForCausalLM",),
    defaults={
        **_DEFAULTS,
        "max_position_embeddings": 4096,
        "q_lora_rank": 1536,
        "n_routed_experts": 256,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "routed_scaling_factor": 2.5,
        "moe_intermediate_size": 2048,
        "first_k_dense_replace": 3,
        "n_group": 8,
        "topk_group": 4,
        "norm_topk_prob": True,
    },
    metadata=_sigmoid_metadata,
    backwards=Backwards(_settings),
    observed=_prediction_layers,
    requirements=(
        SILU,
        NO_ATTENTION_BIAS,
        Requirement("scoring_func", ("sigmoid",), "transformers scores experts of this class by sigmoid"),
        Requirement("moe_layer_freq", (1,), "every layer of its graph behind the dense ones has experts"),
    ),
    tensors=(*_TENSORS, *restricted((_BIASED,), _has_experts), *restricted(_PREDICTION, _after_trunk)),
)
GLM = replace(
    V3,
    classes=("Glm4MoeLiteForCausalLM",),
    defaults={
        **_DEFAULTS,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 202752,
        "q_lora_rank": 768,
        "qk_nope_head_dim": 192,
        "v_head_dim": 256,
        "n_routed_experts": 64,
        "num_experts_per_tok": 4,
        "n_shared_experts": 1,
        "routed_scaling_factor": 1.8,
        "moe_intermediate_size": 1536,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
    },
)


def _fourth_metadata(config: ModelConfig) -> dict[str, Value]:
    """DeepSeek's keys, softmax whose weights are normalised, and queries that grow with the position."""
    rope = config.rope
    keys = {
        "expert_weights_norm": boolean(config.flag("norm_topk_prob")),
        "rope.dimension_count": u32(config.count("qk_rope_head_dim")),  # the part is that of a whole query head
        "attention.temperature_scale": f32(rope_number(rope, "llama_4_scaling_beta", config)),
        "attention.temperature_length": u32(int(rope_number(rope, "original_max_position_embeddings", config))),
    }
    found = {key.replace("deepseek2.", "mistral4.", 1): value for key, value in _metadata(config, _SOFTMAX).items()}
    return found | {f"mistral4.{key}": value for key, value in keys.items()}


def _fourth_settings(header: Header) -> Settings:
    found = _settings(header)
    beta = {"llama_4_scaling_beta": header.get("attention.temperature_scale")}
    return {**found, "rope_parameters": {**found["rope_parameters"], **beta}}


MISTRAL_4 = replace(
    V2,
    name="mistral4",
    classes=("Mistral4ForCausalLM",),
    defaults={
        **_DEFAULTS,
        "max_position_embeddings": 1048576,
        "q_lora_rank": 1024,
        "kv_lora_rank": 256,
        "qk_nope_head_dim": 64,
        "n_routed_experts": 128,
        "num_experts_per_tok": 4,
        "n_shared_experts": 1,
        "routed_scaling_factor": 1.0,
        "moe_intermediate_size": 2048,
        "first_k_dense_replace": 0,
        "norm_topk_prob": True,
    },
    metadata=_fourth_metadata,
    backwards=Backwards(_fourth_settings),
    requirements=(SILU, NO_ATTENTION_BIAS),
)

FAMILIES = (V2, V3, GLM, MISTRAL_4)
