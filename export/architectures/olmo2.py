"""OLMo 2 and 3: norms after attention and the feed-forward network, and on queries and keys of all heads together.

Most layers of OLMo 3 slide; rope is scaled in the others alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgepack.export.rules.backwards import Backwards
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
from edgepack.export.rules.metadata import common_metadata, refuse_own_sliding_rope, sliding_metadata
from edgepack.export.rules.rope_backwards import rope_settings

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.export.rules.backwards import Header, Settings
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


def _sliding_metadata(config: ModelConfig) -> dict[str, Value]:
    """No window where no layer slides: llama.cpp takes the key itself for one."""
    refuse_own_sliding_rope(config)
    keys = sliding_metadata(config, 4) if config.get("sliding_window") is not None else {}
    if keys and not any(keys["attention.sliding_window_pattern"].value):
        keys = {}
    return _metadata(config) | {f"olmo2.{key}": value for key, value in keys.items()}


def _third_settings(header: Header) -> Settings:
    rope = rope_settings(header, header.count("attention.key_length"))
    if rope["rope_type"] == "default":
        return {}
    return {"rope_parameters": {"full_attention": rope, "sliding_attention": {"rope_theta": rope["rope_theta"]}}}


THIRD = replace(
    FAMILY,
    classes=("Olmo3ForCausalLM",),
    defaults={**FAMILY.defaults, "rope_theta": 500000.0, "sliding_window": 4096},
    metadata=_sliding_metadata,
    backwards=Backwards(_third_settings),
)

FAMILIES = (FAMILY, THIRD)
