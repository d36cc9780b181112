"""SmolLM 3: Llama without rope in every fourth layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.export.rules.decoder import (
    LLAMA_NORMS,
    NO_ATTENTION_BIAS,
    SILU,
    WHOLE_HEADS,
    attention_rules,
    embedding_rules,
    feed_forward_rules,
    norm_rules,
)
from edgepack.export.rules.family import Family, Requirement
from edgepack.export.rules.metadata import attention_window, common_metadata

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.gguf.types import Value

_STEP = 4  # n_no_rope_layer_step, fixed in llama.cpp


def _metadata(config: ModelConfig) -> dict[str, Value]:
    return common_metadata(config, "smollm3", window=attention_window(config))


def _every_fourth(config: ModelConfig) -> tuple[list[int]]:
    """1 for a layer with rope, 0 for one without."""
    return ([int((layer + 1) % _STEP != 0) for layer in range(config.n_layers)],)


def _interval(config: ModelConfig) -> tuple[int]:
    """The interval means something only where the layers are not listed."""
    listed = config.get("no_rope_layers") is not None
    return (config.count("no_rope_layer_interval", default=_STEP),) if listed else (_STEP,)


FAMILY = Family(
    name="smollm3",
    classes=("SmolLM3ForCausalLM",),
    defaults={
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_theta": 2e6,
        "max_position_embeddings": 32768,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
    },
    metadata=_metadata,
    requirements=(
        SILU,
        WHOLE_HEADS,
        NO_ATTENTION_BIAS,
        Requirement("mlp_bias", (False,), "its graph has no bias in the feed-forward network"),
        Requirement("no_rope_layers", _every_fourth, "its graph leaves rope out in every fourth layer"),
        Requirement("no_rope_layer_interval", _interval, "its graph leaves rope out in every fourth layer"),
    ),
    tensors=(
        *embedding_rules(),
        *norm_rules(LLAMA_NORMS),
        *attention_rules(interleaved=True, bias=False),
        *feed_forward_rules(),
    ),
)
