"""OLMo 2: norms after attention and feed-forward network instead of before, and over all of q and all of k."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.export.rules.decoder import (
    EQUAL_HEADS,
    LAYER,
    NO_ATTENTION_BIAS,
    SILU,
    WHOLE_HEADS,
    attention_rules,
    embedding_rules,
    feed_forward_rules,
    norm_rules,
    tied_head_copy,
)
from edgepack.export.rules.family import Family, TensorRule
from edgepack.export.rules.metadata import common_metadata

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.gguf.types import Value


def _metadata(config: ModelConfig) -> dict[str, Value]:
    return common_metadata(config, "olmo2")


FAMILY = Family(
    name="olmo2",
    classes=("Olmo2ForCausalLM",),
    defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 2048},
    metadata=_metadata,
    requirements=(SILU, WHOLE_HEADS, NO_ATTENTION_BIAS, EQUAL_HEADS),
    tensors=(
        *embedding_rules(),
        tied_head_copy(),
        *norm_rules({"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}),
        *attention_rules(bias=False),
        TensorRule("blk.{i}.attn_q_norm.weight", LAYER + "self_attn.q_norm.weight", "q"),
        TensorRule("blk.{i}.attn_k_norm.weight", LAYER + "self_attn.k_norm.weight", "kv"),
        *feed_forward_rules(),
    ),
)
