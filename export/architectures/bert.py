"""BERT: learnt positions, norms after each half of a layer, attention in both directions; embeddings, or scores.

What turns token embeddings into one (the pooling) stands in the files of sentence-transformers beside the model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgepack.export.rules.classifier import classifier_rules, ranking_dimensions, ranking_metadata
from edgepack.export.rules.encoder import BERT_REQUIREMENTS, bert_rules, encoder_dimensions, encoder_metadata
from edgepack.export.rules.family import Family
from edgepack.export.rules.metadata import common_metadata

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.gguf.types import Value


def _metadata(config: ModelConfig) -> dict[str, Value]:
    return common_metadata(config, "bert", rope_types=(), epsilon="layer_norm_eps") | encoder_metadata(config, "bert")


def _ranking_metadata(config: ModelConfig) -> dict[str, Value]:
    return _metadata(config) | ranking_metadata(config, "bert")


def _ranking_dimensions(config: ModelConfig) -> dict[str, int]:
    return encoder_dimensions(config) | ranking_dimensions(config)


FAMILY = Family(
    name="bert",
    classes=("BertModel", "BertForMaskedLM"),
    defaults={"layer_norm_eps": 1e-12, "max_position_embeddings": 512, "type_vocab_size": 2},
    metadata=_metadata,
    dimensions=encoder_dimensions,
    renames=(("bert.", ""),),  # saved without a head
    requirements=BERT_REQUIREMENTS,
    unused=(r"position_ids$", r"(^|\.)pooler\.", r"^cls\."),
    tied_head=None,
    tensors=bert_rules("bert."),
)
# The pooler, which looks at the first token, is the first of the head's two matrices.
RANKER = replace(
    FAMILY,
    classes=("BertForSequenceClassification",),
    metadata=_ranking_metadata,
    dimensions=_ranking_dimensions,
    renames=(),
    unused=(r"position_ids$",),
    tensors=(*FAMILY.tensors, *classifier_rules("bert.pooler.dense", "classifier")),
)

FAMILIES = (FAMILY, RANKER)
