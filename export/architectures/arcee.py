"""Arcee (AFM): Llama with a feed-forward network without gate, whose activation is ReLU squared."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgepack.export.architectures.llama import FAMILY as LLAMA
from edgepack.export.rules.decoder import (
    LLAMA_NORMS,
    NO_ATTENTION_BIAS,
    WHOLE_HEADS,
    attention_rules,
    embedding_rules,
    feed_forward_rules,
    norm_rules,
)
from edgepack.export.rules.family import Requirement
from edgepack.export.rules.metadata import PLAIN_ROPE, common_metadata

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.gguf.types import Value


def _metadata(config: ModelConfig) -> dict[str, Value]:
    return common_metadata(config, "arcee", rope_types=(*PLAIN_ROPE, "llama3"))


FAMILY = replace(
    LLAMA,
    name="arcee",
    classes=("ArceeForCausalLM",),
    defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 4096},
    metadata=_metadata,
    requirements=(
        Requirement("hidden_act", ("relu2",), "its graph uses ReLU squared"),
        WHOLE_HEADS,
        NO_ATTENTION_BIAS,
        Requirement("mlp_bias", (False,), "its graph has no such bias"),
    ),
    tensors=(
        *embedding_rules(),
        *norm_rules(LLAMA_NORMS),
        *attention_rules(interleaved=True, bias=False),
        *(rule for rule in feed_forward_rules() if "ffn_gate" not in rule.target),
    ),
)
