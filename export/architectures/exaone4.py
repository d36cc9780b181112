"""EXAONE 4: norms after attention and the feed-forward network, and on every head; of the 32B most layers slide.

llama.cpp knows the 32B by its 64 layers and lets it slide, with rope in the sliding layers alone; others do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.errors import CheckpointError, UnsupportedModelError
from edgepack.export.rules.backwards import Backwards
from edgepack.export.rules.decoder import (
    EQUAL_HEADS,
    SILU,
    WHOLE_HEADS,
    attention_rules,
    embedding_rules,
    feed_forward_rules,
    head_norm_rules,
    norm_rules,
)
from edgepack.export.rules.family import Family
from edgepack.export.rules.metadata import PLAIN_ROPE, SLIDING_OR_FULL, common_metadata, layer_kinds
from edgepack.export.rules.rope_factors import llama3_tensor
from edgepack.gguf.types import Value, ValueType, array, u32

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.export.rules.backwards import Header, Settings

_LAYERS_OF_32B = 64


def _metadata(config: ModelConfig) -> dict[str, Value]:
    common = common_metadata(config, "exaone4", rope_types=(*PLAIN_ROPE, "llama3"))
    return common | {f"exaone4.{key}": value for key, value in _sliding(config).items()}


def _sliding(config: ModelConfig) -> dict[str, Value]:
    slides = config.get("sliding_window") is not None
    if slides != (config.n_layers == _LAYERS_OF_32B):
        raise UnsupportedModelError(
            f"{config.label}: sliding_window is {config.get('sliding_window')!r} with {config.n_layers} layers:"
            f" llama.cpp's exaone4 slides where there are {_LAYERS_OF_32B} layers, and only there"
        )
    if not slides:
        return {}
    kinds = layer_kinds(config, SLIDING_OR_FULL, lambda layer: SLIDING_OR_FULL[_is_full(config, layer)])
    return {
        "attention.sliding_window": u32(config.count("sliding_window")),
        "attention.sliding_window_pattern": array(ValueType.BOOL, [kind == SLIDING_OR_FULL[0] for kind in kinds]),
    }


def _is_full(config: ModelConfig, layer: int) -> bool:
    """The pattern is a period, or letters (L slides, G does not) that repeat."""
    pattern = config.get("sliding_window_pattern")
    if not isinstance(pattern, str):
        return (layer + 1) % config.count("sliding_window_pattern") == 0
    if not pattern or set(pattern) - {"L", "G"}:
        raise CheckpointError(f"{config.label}: sliding_window_pattern: expected letters L and G, got {pattern!r}")
    return pattern[layer % len(pattern)] == "G"


def _settings(header: Header) -> Settings:
    """Without the key no layer slides."""
    slides = header.flags("attention.sliding_window_pattern") or [False] * header.count("block_count")
    return {
        "sliding_window": header.get("attention.sliding_window"),
        "layer_types": [SLIDING_OR_FULL[not each] for each in slides],
    }


FAMILY = Family(
    name="exaone4",
    classes=("Exaone4ForCausalLM",),
    defaults={
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "sliding_window": 4096,
        "sliding_window_pattern": 4,
    },
    metadata=_metadata,
    backwards=Backwards(_settings),
    computed=llama3_tensor,
    requirements=(SILU, WHOLE_HEADS, EQUAL_HEADS),
    tensors=(
        *embedding_rules(),
        *norm_rules({"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}),
        *attention_rules(bias=False),
        *head_norm_rules(),
        *feed_forward_rules(),
    ),
)
