"""BitNet b1.58: Llama's graph on halves of heads, with a norm before each layer's two last projections.

llama.cpp's graph has the first models' SiLU; Microsoft's 2B, whose activation is ReLU squared, is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.export.rules.decoder import (
    EQUAL_HEADS,
    LAYER,
    LLAMA_NORMS,
    NO_ATTENTION_BIAS,
    SILU,
    WHOLE_HEADS,
    attention_rules,
    embedding_rules,
    feed_forward_rules,
    norm_rules,
)
from edgepack.export.rules.family import Family, Origin, Requirement, TensorRule
from edgepack.export.rules.metadata import common_metadata

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.gguf.types import Value


def _metadata(config: ModelConfig) -> dict[str, Value]:
    return common_metadata(config, "bitnet", rope_types=("default", "dynamic", "linear"))


FAMILY = Family(
    name="bitnet",
    classes=("BitNetForCausalLM",),
    defaults={
        "hidden_act": "relu2",
        "num_key_value_heads": 5,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "max_position_embeddings": 2048,
    },
    metadata=_metadata,
    requirements=(
        SILU,
        WHOLE_HEADS,
        EQUAL_HEADS,
        NO_ATTENTION_BIAS,
        Requirement("tie_word_embeddings", (True,), "its graph takes the embedding as the head", absent_is_fine=False),
    ),
    tensors=(
        *embedding_rules(),
        *norm_rules(LLAMA_NORMS),
        *attention_rules(bias=False),
        TensorRule(
            "blk.{i}.attn_sub_norm.weight",
            LAYER + "self_attn.attn_sub_norm.weight",
            "d",
            alternatives=(Origin(LAYER + "self_attn.inner_attn_ln.weight"),),
        ),
        *feed_forward_rules(),
        TensorRule(
            "blk.{i}.ffn_sub_norm.weight",
            LAYER + "mlp.ffn_sub_norm.weight",
            "ff",
            alternatives=(Origin(LAYER + "mlp.ffn_layernorm.weight"),),
        ),
    ),
)
