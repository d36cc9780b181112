"""Qwen 3 with experts in every layer, without a shared one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.export.rules.decoder import (
    EVERY_LAYER_HAS_EXPERTS,
    LAYER,
    LLAMA_NORMS,
    NO_ATTENTION_BIAS,
    SILU,
    WHOLE_HEADS,
    attention_rules,
    embedding_rules,
    head_norm_rules,
    norm_rules,
    router_rule,
)
from edgepack.export.rules.experts import expert_rules
from edgepack.export.rules.family import Family, Requirement, standard_dimensions
from edgepack.export.rules.metadata import attention_window, common_metadata
from edgepack.gguf.types import Value, u32

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig


def _metadata(config: ModelConfig) -> dict[str, Value]:
    return common_metadata(config, "qwen3moe", window=attention_window(config)) | {
        "qwen3moe.expert_feed_forward_length": u32(config.count("moe_intermediate_size"))
    }


def _dimensions(config: ModelConfig) -> dict[str, int]:
    return standard_dimensions(config) | {"moe": config.count("moe_intermediate_size")}


FAMILY = Family(
    name="qwen3moe",
    classes=("Qwen3MoeForCausalLM",),
    defaults={
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "moe_intermediate_size": 768,
        "num_experts_per_tok": 8,
        "num_experts": 128,
        "norm_topk_prob": False,
    },
    metadata=_metadata,
    dimensions=_dimensions,
    requirements=(
        SILU,
        WHOLE_HEADS,
        NO_ATTENTION_BIAS,
        Requirement(
            "norm_topk_prob", (True,), "its graph normalises the chosen experts' weights", absent_is_fine=False
        ),
        *EVERY_LAYER_HAS_EXPERTS,
    ),
    tensors=(
        *embedding_rules(),
        *norm_rules(LLAMA_NORMS),
        *attention_rules(bias=False),
        *head_norm_rules(),
        router_rule(LAYER + "mlp.gate.weight"),
        *expert_rules(LAYER + "mlp.experts."),
    ),
)
