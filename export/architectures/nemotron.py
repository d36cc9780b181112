"""Nemotron 3 and 4 (Minitron): LayerNorms stored as their distance from one, ReLU squared, rope on a part of a head."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.export.rules.decoder import (
    EQUAL_HEADS,
    LAYER,
    LLAMA_NORMS,
    attention_rules,
    embedding_rules,
    feed_forward_rules,
    norm_rules,
    plus_one,
    tied_head_copy,
)
from edgepack.export.rules.family import Family, Requirement, TensorRule
from edgepack.export.rules.metadata import common_metadata

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.gguf.types import Value


def _metadata(config: ModelConfig) -> dict[str, Value]:
    return common_metadata(config, "nemotron", epsilon="norm_eps")


FAMILY = Family(
    name="nemotron",
    classes=("NemotronForCausalLM",),
    defaults={"norm_eps": 1e-5, "max_position_embeddings": 4096, "partial_rotary_factor": 0.5},
    metadata=_metadata,
    requirements=(Requirement("hidden_act", ("relu2",), "its graph uses ReLU squared"), EQUAL_HEADS),
    tensors=(
        *embedding_rules(plus_one),
        TensorRule("output_norm.bias", "model.norm.bias", "d"),
        tied_head_copy(),
        *norm_rules(LLAMA_NORMS, plus_one),
        *(TensorRule(f"blk.{{i}}.{ours}.bias", f"{LAYER}{theirs}.bias", "d") for ours, theirs in LLAMA_NORMS.items()),
        *attention_rules(output_bias=True),
        *(rule for rule in feed_forward_rules(bias=True) if "ffn_gate" not in rule.target),
    ),
)
