"""Llama 1 to 3.3 and what shares its graph (SmolLM, TinyLlama …)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.export.rules.decoder import (
    LLAMA_NORMS,
    SILU,
    WHOLE_HEADS,
    attention_rules,
    embedding_rules,
    feed_forward_rules,
    norm_rules,
)
from edgepack.export.rules.family import Family
from edgepack.export.rules.metadata import PLAIN_ROPE, common_metadata
from edgepack.export.rules.rope_factors import llama3_tensor

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.gguf.types import Value


def _metadata(config: ModelConfig) -> dict[str, Value]:
    return common_metadata(config, "llama", rope_types=(*PLAIN_ROPE, "llama3"))


FAMILY = Family(
    name="llama",
    classes=("LlamaForCausalLM", "LLaMAForCausalLM", "LlamaModel"),
    defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
    metadata=_metadata,
    headless=True,
    renames=(("model.", ""),),  # saved without a head
    computed=llama3_tensor,
    requirements=(SILU, WHOLE_HEADS),
    tensors=(
        *embedding_rules(),
        *norm_rules(LLAMA_NORMS),
        *attention_rules(interleaved=True, output_bias=True),
        *feed_forward_rules(bias=True),
    ),
)
