"""Gemma 3, of the multimodal sizes the text part: norms on heads, most layers with a window and rope of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgepack.errors import UnsupportedModelError
from edgepack.export.architectures.gemma2 import NORMS, attention_scalars
from edgepack.export.rules.decoder import (
    GELU,
    NO_ATTENTION_BIAS,
    WHOLE_HEADS,
    attention_rules,
    embedding_rules,
    feed_forward_rules,
    head_norm_rules,
    norm_rules,
    plus_one,
)
from edgepack.export.rules.family import Family, Requirement
from edgepack.export.rules.metadata import common_metadata, sliding_metadata
from edgepack.export.rules.rope_factors import rope_number
from edgepack.gguf.types import Value, f32

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig

_LAYERS_OF_27B = 62  # by which llama.cpp knows the 27B, whose attention it scales in another way


def _metadata(config: ModelConfig) -> dict[str, Value]:
    keys = sliding_keys(config)
    if config.get("final_logit_softcapping") is not None:
        keys["final_logit_softcapping"] = f32(config.number("final_logit_softcapping"))
    common = common_metadata(config, "gemma3", rope_types=("default", "linear"))
    return common | {f"gemma3.{key}": value for key, value in keys.items()}


def sliding_keys(config: ModelConfig) -> dict[str, Value]:
    """Nothing where no layer slides: llama.cpp takes the key itself for a sliding window."""
    if config.get("sliding_window") is None:
        return {}
    keys = sliding_metadata(config, 6)
    if not any(keys["attention.sliding_window_pattern"].value):
        return {}
    return keys | {"rope.freq_base_swa": f32(sliding_rope_base(config))}


def sliding_rope_base(config: ModelConfig) -> float:
    """The base of sliding layers' rope.

    Raises:
        UnsupportedModelError: it is scaled.
    """
    rope = config.sliding_rope
    if rope.get("rope_type", "default") != "default":
        raise UnsupportedModelError(
            f"{config.label}: rope_parameters.sliding_attention.rope_type is {rope['rope_type']!r}:"
            " llama.cpp needs 'default', because its graph scales the rope of full layers alone"
        )
    return rope_number(rope, "rope_theta", config, default=10000.0)


TEXT = Family(
    name="gemma3",
    classes=("Gemma3ForCausalLM",),
    defaults={
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "max_position_embeddings": 131072,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
    },
    metadata=_metadata,
    requirements=(
        Requirement(("hidden_activation", "hidden_act"), GELU, "its graph uses GELU"),
        WHOLE_HEADS,
        NO_ATTENTION_BIAS,
        Requirement("attn_logit_softcapping", (), "its graph does not cap attention"),
        Requirement("use_bidirectional_attention", (False,), "its graph is causal"),
        Requirement(
            "query_pre_attn_scalar",
            lambda config: attention_scalars(config, _LAYERS_OF_27B),
            "its graph scales attention by the width of heads",
        ),
    ),
    tensors=(
        *embedding_rules(plus_one),
        *norm_rules(NORMS, plus_one),
        *attention_rules(bias=False),
        *head_norm_rules(plus_one),
        *feed_forward_rules(),
    ),
)

# The 4 B and larger ones, of which the part that reads text is taken.
MULTIMODAL = replace(
    TEXT,
    classes=("Gemma3ForConditionalGeneration",),
    nested=True,
    defaults={**TEXT.defaults, "vocab_size": 262208},
    renames=(("model.", "language_model.model."), ("model.", "model.language_model."), ("", "language_model.")),
    unused=(*TEXT.unused, r"^(model\.)?(vision_tower|multi_modal_projector)\."),
)

FAMILIES = (TEXT, MULTIMODAL)
