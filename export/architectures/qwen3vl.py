"""Qwen 3 that sees, dense and with experts: of it the part that reads and writes text, with rope in three sections.

What the eyes see enters the first layers too (`n_deepstack_layers`); in text nothing does.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgepack.errors import CheckpointError
from edgepack.export.architectures.qwen3 import FAMILY as QWEN3
from edgepack.export.architectures.qwen3moe import FAMILY as QWEN3_MOE
from edgepack.export.rules.decoder import (
    LAYER,
    LLAMA_NORMS,
    attention_rules,
    embedding_rules,
    head_norm_rules,
    norm_rules,
    router_rule,
)
from edgepack.export.rules.experts import transposed_expert_rules
from edgepack.export.rules.family import no_other_family
from edgepack.export.rules.metadata import common_metadata
from edgepack.export.rules.mrope import MROPE, section_metadata
from edgepack.export.rules.text_part import text_part
from edgepack.gguf.types import Value, u32

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig

_SECTIONS = (24, 20, 20)
_DEEPSTACK = [8, 16, 24]
_DEFAULTS = {"rms_norm_eps": 1e-6, "rope_theta": 500000.0, "max_position_embeddings": 128000}


def _metadata(config: ModelConfig, name: str) -> dict[str, Value]:
    keys = section_metadata(config, _SECTIONS, in_turn=True) | {"n_deepstack_layers": u32(_deepstack(config))}
    return common_metadata(config, name, rope_types=MROPE) | {f"{name}.{key}": value for key, value in keys.items()}


def _deepstack(config: ModelConfig) -> int:
    eyes = config.get("vision_config") or {}
    layers = eyes.get("deepstack_visual_indexes", _DEEPSTACK) if isinstance(eyes, dict) else None
    if not isinstance(layers, list):
        raise CheckpointError(
            f"{config.label}: vision_config.deepstack_visual_indexes: expected a list, got {layers!r}"
        )
    return len(layers)


def _dense(config: ModelConfig) -> dict[str, Value]:
    return _metadata(config, "qwen3vl")


def _experts(config: ModelConfig) -> dict[str, Value]:
    width = {"qwen3vlmoe.expert_feed_forward_length": u32(config.count("moe_intermediate_size"))}
    return _metadata(config, "qwen3vlmoe") | width


DENSE = text_part(
    replace(QWEN3, name="qwen3vl", metadata=_dense),
    "Qwen3VLForConditionalGeneration",
    instead=no_other_family,
    defaults={"num_key_value_heads": 32, "head_dim": 128, **_DEFAULTS},
)
EXPERTS = text_part(
    replace(QWEN3_MOE, name="qwen3vlmoe", metadata=_experts),
    "Qwen3VLMoeForConditionalGeneration",
    defaults={
        "num_key_value_heads": 16,
        "moe_intermediate_size": 1408,
        "num_experts_per_tok": 4,
        "num_experts": 60,
        **_DEFAULTS,
    },
    requirements=tuple(each for each in QWEN3_MOE.requirements if each.key != "norm_topk_prob"),  # always normalised
    tensors=(
        *embedding_rules(),
        *norm_rules(LLAMA_NORMS),
        *attention_rules(bias=False),
        *head_norm_rules(),
        router_rule(LAYER + "mlp.gate.weight"),
        *transposed_expert_rules(LAYER + "mlp.experts."),
    ),
)

FAMILIES = (DENSE, EXPERTS)
