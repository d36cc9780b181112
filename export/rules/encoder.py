"""Rules that encoders share: embeddings, attention in both directions, LayerNorms with their bias.

Which of them a family has, and what differs, is that family's data in `export.architectures`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.export.rules.decoder import EQUAL_HEADS, GELU
from edgepack.export.rules.family import Origin, Requirement, TensorRule, standard_dimensions
from edgepack.gguf import keys
from edgepack.gguf.types import Value, boolean, u32

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.export.rules.family import Transform

BERT_REQUIREMENTS = (
    Requirement("hidden_act", GELU, "its graph uses GELU"),
    Requirement("position_embedding_type", ("absolute",), "its graph adds learnt positions"),
    Requirement("is_decoder", (False,), "its graph attends in both directions"),
    Requirement("add_cross_attention", (False,), "its graph has no cross attention"),
    EQUAL_HEADS,
)
_LAYER = "encoder.layer.{i}."


def encoder_metadata(config: ModelConfig, name: str) -> dict[str, Value]:
    """That attention looks both ways, and how many types of token there are."""
    return {
        f"{name}.attention.causal": boolean(False),
        keys.VOCABULARY_SEGMENTS: u32(config.count("type_vocab_size")),
    }


def encoder_dimensions(config: ModelConfig) -> dict[str, int]:
    """`standard_dimensions`, ctx positions and types of token."""
    return standard_dimensions(config) | {
        "ctx": config.count("max_position_embeddings"),
        "types": config.count("type_vocab_size"),
    }


def layer_norm(target: str, source: str) -> tuple[TensorRule, ...]:
    """A LayerNorm; the oldest checkpoints call its parts gamma and beta."""
    return tuple(
        TensorRule(f"{target}.{kind}", f"{source}.{kind}", "d", alternatives=(Origin(f"{source}.{old}"),))
        for kind, old in (("weight", "gamma"), ("bias", "beta"))
    )


def affine(target: str, source: str, shape: str) -> tuple[TensorRule, ...]:
    """A matrix of every layer and its bias."""
    return (
        TensorRule(f"blk.{{i}}.{target}.weight", f"{source}.weight", shape),
        TensorRule(f"blk.{{i}}.{target}.bias", f"{source}.bias", shape.split(maxsplit=1)[0]),
    )


def bert_rules(prefix: str, positions: Transform | None = None) -> tuple[TensorRule, ...]:
    """All of BERT but a head.

    Args:
        prefix: of the names, such as `bert.`.
        positions: the transform of the learnt positions.
    """
    layer, embeddings = prefix + _LAYER, prefix + "embeddings."
    return (
        TensorRule("token_embd.weight", embeddings + "word_embeddings.weight", "v d"),
        TensorRule("token_types.weight", embeddings + "token_type_embeddings.weight", "types d"),
        TensorRule("position_embd.weight", embeddings + "position_embeddings.weight", "ctx d", positions),
        *layer_norm("token_embd_norm", embeddings + "LayerNorm"),
        *affine("attn_q", layer + "attention.self.query", "d d"),
        *affine("attn_k", layer + "attention.self.key", "d d"),
        *affine("attn_v", layer + "attention.self.value", "d d"),
        *affine("attn_output", layer + "attention.output.dense", "d d"),
        *layer_norm("blk.{i}.attn_output_norm", layer + "attention.output.LayerNorm"),
        *affine("ffn_up", layer + "intermediate.dense", "ff d"),
        *affine("ffn_down", layer + "output.dense", "d ff"),
        *layer_norm("blk.{i}.layer_output_norm", layer + "output.LayerNorm"),
    )
