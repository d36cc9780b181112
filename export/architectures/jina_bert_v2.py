"""Jina's embeddings 2: BERT with alibi in place of learnt positions, and gated feed-forward networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.export.rules.decoder import EQUAL_HEADS, GELU
from edgepack.export.rules.encoder import affine, bert_rules, encoder_dimensions, encoder_metadata, layer_norm
from edgepack.export.rules.family import Family, Requirement, TensorRule
from edgepack.export.rules.metadata import common_metadata

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.gguf.types import Value

_NAME = "jina-bert-v2"
_LAYER = "bert.encoder.layer.{i}."
_OTHER = ("position_embd", "ffn_up", "ffn_down", "layer_output_norm")  # than BERT's


def _metadata(config: ModelConfig) -> dict[str, Value]:
    common = common_metadata(config, _NAME, rope_types=(), epsilon="layer_norm_eps")
    return common | encoder_metadata(config, _NAME)


def _dimensions(config: ModelConfig) -> dict[str, int]:
    found = encoder_dimensions(config)
    return found | {"gate+up": 2 * found["ff"]}


FAMILY = Family(
    name=_NAME,
    classes=("JinaBertModel", "JinaBertForMaskedLM"),
    defaults={"layer_norm_eps": 1e-12, "max_position_embeddings": 512, "type_vocab_size": 2},
    metadata=_metadata,
    dimensions=_dimensions,
    renames=(("bert.", ""),),  # saved without a head
    requirements=(
        Requirement("hidden_act", GELU, "its graph uses GELU"),
        Requirement("position_embedding_type", ("alibi",), "its graph has alibi", absent_is_fine=False),
        Requirement("feed_forward_type", ("geglu",), "its graph has a gate", absent_is_fine=False),
        EQUAL_HEADS,
    ),
    unused=(r"position_ids$", r"(^|\.)pooler\.", r"^cls\."),
    tied_head=None,
    tensors=(
        *(rule for rule in bert_rules("bert.") if not any(part in rule.target for part in _OTHER)),
        TensorRule("blk.{i}.ffn_up.weight", _LAYER + "mlp.gated_layers.weight", "gate+up d"),
        *affine("ffn_down", _LAYER + "mlp.wo", "d ff"),
        *layer_norm("blk.{i}.layer_output_norm", _LAYER + "mlp.layernorm"),
    ),
)
