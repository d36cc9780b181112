"""Llama 4 (Scout, Maverick): experts and a shared one, attention in chunks of 8192 with rope, and without every fourth.

llama.cpp's graph has the published models' chunks, temperatures and layers without rope built in; others are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.export.rules.backwards import Backwards
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
    restricted,
    router_rule,
)
from edgepack.export.rules.experts import transposed_expert_rules
from edgepack.export.rules.family import Family, Requirement, standard_dimensions
from edgepack.export.rules.metadata import PLAIN_ROPE, common_metadata
from edgepack.export.rules.rope_factors import llama3_tensor
from edgepack.export.rules.text_part import text_part
from edgepack.gguf.types import Value, u32

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.export.rules.backwards import Header, Settings

_WITHOUT_NORMS = 128  # experts by which llama.cpp knows that queries and keys are not normalised
_WITHOUT_ROPE = 4  # every so many layers
_BUILT_IN: dict[str, object] = {
    "attention_chunk_size": 8192,
    "floor_scale": 8192,
    "attn_scale": 0.1,
    "attn_temperature_tuning": True,
    "no_rope_layer_interval": _WITHOUT_ROPE,
}


def _metadata(config: ModelConfig) -> dict[str, Value]:
    keys = {
        "feed_forward_length": u32(config.count("intermediate_size_mlp")),
        "expert_feed_forward_length": u32(config.count("intermediate_size")),
        "interleave_moe_layer_step": u32(config.count("interleave_moe_layer_step")),
    }
    common = common_metadata(config, "llama4", rope_types=(*PLAIN_ROPE, "llama3"))
    return common | {f"llama4.{key}": value for key, value in keys.items()}


def _dimensions(config: ModelConfig) -> dict[str, int]:
    return standard_dimensions(config) | {"dense": config.count("intermediate_size_mlp")}


def _has_experts(config: ModelConfig, layer: int) -> bool:
    return (layer + 1) % config.count("interleave_moe_layer_step") == 0


def _dense(config: ModelConfig, layer: int) -> bool:
    return not _has_experts(config, layer)


def _expert_layers(config: ModelConfig) -> tuple[list[int]]:
    return ([layer for layer in range(config.n_layers) if _has_experts(config, layer)],)


def _turned_layers(config: ModelConfig) -> tuple[list[int], ...]:
    return ([], [int((layer + 1) % _WITHOUT_ROPE != 0) for layer in range(config.n_layers)])


def _kinds(config: ModelConfig) -> tuple[list[str]]:
    return ([("full_attention", "chunked_attention")[turned] for turned in _turned_layers(config)[1]],)


def _settings(header: Header) -> Settings:
    return {
        "intermediate_size": header.count("expert_feed_forward_length"),
        "intermediate_size_mlp": header.count("feed_forward_length"),
        "use_qk_norm": header.count("expert_count") != _WITHOUT_NORMS,
    }


TEXT = Family(
    name="llama4",
    classes=("Llama4ForCausalLM",),
    defaults={
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "max_position_embeddings": 131072,
        "intermediate_size_mlp": 16384,
        "num_local_experts": 16,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 1,
        "use_qk_norm": True,
    },
    metadata=_metadata,
    backwards=Backwards(_settings),
    dimensions=_dimensions,
    computed=llama3_tensor,
    requirements=(
        SILU,
        WHOLE_HEADS,
        NO_ATTENTION_BIAS,
        *(Requirement(key, (value,), "its graph has no other") for key, value in _BUILT_IN.items()),
        Requirement("moe_layers", _expert_layers, "its graph has experts at equal distances"),
        Requirement("no_rope_layers", _turned_layers, "its graph leaves rope out in every fourth layer"),
        Requirement("layer_types", _kinds, "its graph attends to everything in every fourth layer"),
        Requirement(
            "use_qk_norm",
            lambda config: (config.n_experts != _WITHOUT_NORMS,),
            f"its graph normalises queries and keys unless there are {_WITHOUT_NORMS} experts",
        ),
    ),
    tensors=(
        *embedding_rules(),
        *norm_rules(LLAMA_NORMS),
        *attention_rules(bias=False),
        *feed_forward_rules(module="feed_forward.", width="dense", when=_dense),
        *restricted(
            (
                router_rule(LAYER + "feed_forward.router.weight"),
                *transposed_expert_rules(LAYER + "feed_forward.experts.", held=False, width="ff"),
                *feed_forward_rules(module="feed_forward.shared_expert.", suffix="_shexp"),
            ),
            _has_experts,
        ),
    ),
)
WITH_EYES = text_part(TEXT, "Llama4ForConditionalGeneration")

FAMILIES = (TEXT, WITH_EYES)
