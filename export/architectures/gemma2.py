"""Gemma 2: soft caps on attention and logits, every other layer with a sliding window, norms stored less one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.export.rules.decoder import (
    GELU,
    NO_ATTENTION_BIAS,
    WHOLE_HEADS,
    attention_rules,
    embedding_rules,
    feed_forward_rules,
    norm_rules,
    plus_one,
)
from edgepack.export.rules.family import Family, Requirement
from edgepack.export.rules.metadata import common_metadata, sliding_metadata
from edgepack.gguf.types import Value, f32

if TYPE_CHECKING:
    from typing import Any

    from edgepack.export.config import ModelConfig

_CAPS = ("attn_logit_softcapping", "final_logit_softcapping")
_LAYERS_OF_27B = 46  # by which llama.cpp knows the 27B, whose attention it scales in another way

NORMS = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def attention_scalars(config: ModelConfig, layers_of_27b: int) -> tuple[int]:
    """The `query_pre_attn_scalar` that llama.cpp takes for granted; it has no key for another."""
    return (config.hidden // config.n_heads if config.n_layers == layers_of_27b else config.head_dim,)


def _metadata(config: ModelConfig) -> dict[str, Value]:
    keys = {cap: f32(config.number(cap)) for cap in _CAPS} | sliding_metadata(config, 2)
    return common_metadata(config, "gemma2") | {f"gemma2.{key}": value for key, value in keys.items()}


def _cap(key: str) -> Requirement:
    def positive(config: ModelConfig) -> tuple[Any, ...]:
        value = config.get(key)
        return (value,) if isinstance(value, int | float) and value > 0 else ("a positive number",)

    return Requirement(key, positive, "its graph always caps", absent_is_fine=False)


FAMILY = Family(
    name="gemma2",
    classes=("Gemma2ForCausalLM",),
    defaults={
        "num_key_value_heads": 4,
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 8192,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
        "tie_word_embeddings": True,
    },
    metadata=_metadata,
    requirements=(
        Requirement(("hidden_activation", "hidden_act"), GELU, "its graph uses GELU"),
        WHOLE_HEADS,
        NO_ATTENTION_BIAS,
        Requirement("tie_word_embeddings", (True,), "its graph has no head of its own"),
        Requirement("use_bidirectional_attention", (False,), "its graph is causal"),
        Requirement(
            "query_pre_attn_scalar",
            lambda config: attention_scalars(config, _LAYERS_OF_27B),
            "its graph scales attention by the width of heads",
        ),
        *map(_cap, _CAPS),
    ),
    tensors=(
        *embedding_rules(plus_one),
        *norm_rules(NORMS, plus_one),
        *attention_rules(bias=False),
        *feed_forward_rules(),
    ),
)
