"""Qwen 1.5 and 2 with experts: routed ones, and a shared one behind a gate of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.export.rules.decoder import (
    EQUAL_HEADS,
    EVERY_LAYER_HAS_EXPERTS,
    LAYER,
    LLAMA_NORMS,
    SILU,
    WHOLE_HEADS,
    attention_rules,
    embedding_rules,
    norm_rules,
    router_rule,
    tied_head_copy,
)
from edgepack.export.rules.experts import GATED_SHARED_EXPERT, expert_rules
from edgepack.export.rules.family import Family, Requirement, standard_dimensions
from edgepack.export.rules.metadata import attention_window, common_metadata
from edgepack.gguf.types import Value, u32

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig


def _metadata(config: ModelConfig) -> dict[str, Value]:
    return common_metadata(config, "qwen2moe", window=attention_window(config)) | {
        "qwen2moe.expert_feed_forward_length": u32(config.count("moe_intermediate_size")),
        "qwen2moe.expert_shared_feed_forward_length": u32(config.count("shared_expert_intermediate_size")),
    }


def _dimensions(config: ModelConfig) -> dict[str, int]:
    return standard_dimensions(config) | {
        "moe": config.count("moe_intermediate_size"),
        "shared": config.count("shared_expert_intermediate_size"),
    }


FAMILY = Family(
    name="qwen2moe",
    classes=("Qwen2MoeForCausalLM",),
    defaults={
        "num_key_value_heads": 16,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "num_experts_per_tok": 4,
        "num_experts": 60,
    },
    metadata=_metadata,
    dimensions=_dimensions,
    requirements=(
        SILU,
        WHOLE_HEADS,
        EQUAL_HEADS,
        Requirement("norm_topk_prob", (False,), "its graph leaves the chosen experts' weights as they are"),
        *EVERY_LAYER_HAS_EXPERTS,
    ),
    tensors=(
        *embedding_rules(),
        tied_head_copy(),
        *norm_rules(LLAMA_NORMS),
        *attention_rules(),
        router_rule(LAYER + "mlp.gate.weight"),
        *expert_rules(LAYER + "mlp.experts."),
        *GATED_SHARED_EXPERT,
    ),
)
