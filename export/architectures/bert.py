"""BERT as an embedding model: learnt positions, norms after each half of a layer, attention in both directions.

What turns token embeddings into one (the pooling) stands in the files of sentence-transformers beside the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.export.rules.decoder import EQUAL_HEADS, GELU
from edgepack.export.rules.family import Family, Origin, Requirement, TensorRule, standard_dimensions
from edgepack.export.rules.metadata import common_metadata
from edgepack.gguf.types import Value, boolean, u32

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig

_LAYER = "bert.encoder.layer.{i}."


def _metadata(config: ModelConfig) -> dict[str, Value]:
    keys = {
        "bert.attention.causal": boolean(False),
        "tokenizer.ggml.token_type_count": u32(config.count("type_vocab_size")),
    }
    return common_metadata(config, "bert", rope_types=(), epsilon="layer_norm_eps") | keys


def _dimensions(config: ModelConfig) -> dict[str, int]:
    return standard_dimensions(config) | {
        "ctx": config.count("max_position_embeddings"),
        "types": config.count("type_vocab_size"),
    }


def _norm(target: str, source: str) -> tuple[TensorRule, ...]:
    """A LayerNorm; the oldest checkpoints call its parts gamma and beta."""
    return tuple(
        TensorRule(
            f"{target}.{kind}", f"{source}.LayerNorm.{kind}", "d", alternatives=(Origin(f"{source}.LayerNorm.{old}"),)
        )
        for kind, old in (("weight", "gamma"), ("bias", "beta"))
    )


def _affine(target: str, source: str, shape: str) -> tuple[TensorRule, ...]:
    return (
        TensorRule(f"blk.{{i}}.{target}.weight", f"{_LAYER}{source}.weight", shape),
        TensorRule(f"blk.{{i}}.{target}.bias", f"{_LAYER}{source}.bias", shape.split(maxsplit=1)[0]),
    )


FAMILY = Family(
    name="bert",
    classes=("BertModel", "BertForMaskedLM"),
    defaults={"layer_norm_eps": 1e-12, "max_position_embeddings": 512, "type_vocab_size": 2},
    metadata=_metadata,
    dimensions=_dimensions,
    renames=(("bert.", ""),),  # saved without a head
    requirements=(
        Requirement("hidden_act", GELU, "its graph uses GELU"),
        Requirement("position_embedding_type", ("absolute",), "its graph adds learnt positions"),
        Requirement("is_decoder", (False,), "its graph attends in both directions"),
        Requirement("add_cross_attention", (False,), "its graph has no cross attention"),
        EQUAL_HEADS,
    ),
    unused=(r"position_ids$", r"(^|\.)pooler\.", r"^cls\."),
    tied_head=None,
    tensors=(
        TensorRule("token_embd.weight", "bert.embeddings.word_embeddings.weight", "v d"),
        TensorRule("token_types.weight", "bert.embeddings.token_type_embeddings.weight", "types d"),
        TensorRule("position_embd.weight", "bert.embeddings.position_embeddings.weight", "ctx d"),
        *_norm("token_embd_norm", "bert.embeddings"),
        *_affine("attn_q", "attention.self.query", "d d"),
        *_affine("attn_k", "attention.self.key", "d d"),
        *_affine("attn_v", "attention.self.value", "d d"),
        *_affine("attn_output", "attention.output.dense", "d d"),
        *_norm("blk.{i}.attn_output_norm", _LAYER + "attention.output"),
        *_affine("ffn_up", "intermediate.dense", "ff d"),
        *_affine("ffn_down", "output.dense", "d ff"),
        *_norm("blk.{i}.layer_output_norm", _LAYER + "output"),
    ),
)
