"""RoBERTa and XLM-RoBERTa (bge-m3, multilingual e5, their rerankers): BERT whose positions begin behind the padding's.

Their learnt positions up to the padding token's number are never looked up and are cut off.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgepack.errors import CheckpointError
from edgepack.export.architectures.bert import FAMILY as BERT
from edgepack.export.architectures.bert import RANKER as BERT_RANKER
from edgepack.export.architectures.jina_bert_v3 import FAMILY as JINA_3
from edgepack.export.arranged_rows import SlicedRows
from edgepack.export.rules.classifier import classifier_rules
from edgepack.export.rules.encoder import bert_rules
from edgepack.export.rules.family import no_other_family
from edgepack.gguf.types import Value, u32

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgepack.export.config import ModelConfig
    from edgepack.export.rows import Rows


def _first(config: ModelConfig) -> int:
    """The position of a text's first token."""
    padding, positions = config.get("pad_token_id"), config.count("max_position_embeddings")
    if type(padding) is not int or not 0 <= padding < positions - 1:
        raise CheckpointError(f"{config.label}: pad_token_id: expected a token below {positions - 1}, got {padding!r}")
    return padding + 1


def _cut(rows: Rows, config: ModelConfig) -> Rows:
    """HF: [padding + 1 + context, d] → [context, d]."""
    return SlicedRows(rows, _first(config), rows.shape[0])


def _shortened(metadata: Callable[[ModelConfig], dict[str, Value]]) -> Callable[[ModelConfig], dict[str, Value]]:
    def shorter(config: ModelConfig) -> dict[str, Value]:
        return metadata(config) | {"bert.context_length": u32(_context(config))}

    return shorter


def _context(config: ModelConfig) -> int:
    return config.count("max_position_embeddings") - _first(config)


def _dimensions(config: ModelConfig) -> dict[str, int]:
    return {**BERT.dimensions(config), "ctx": _context(config)}


def _ranking_dimensions(config: ModelConfig) -> dict[str, int]:
    return {**BERT_RANKER.dimensions(config), "ctx": _context(config)}


_TENSORS = bert_rules("roberta.", _cut)
FAMILY = replace(
    BERT,
    classes=("RobertaModel", "RobertaForMaskedLM", "XLMRobertaModel", "XLMRobertaForMaskedLM"),
    defaults={**BERT.defaults, "pad_token_id": 1},
    metadata=_shortened(BERT.metadata),
    dimensions=_dimensions,
    instead=lambda config: JINA_3 if config.get("lora_adaptations") else None,
    renames=(("roberta.", ""),),  # saved without a head
    unused=(r"position_ids$", r"(^|\.)pooler\.", r"^lm_head\."),
    tensors=_TENSORS,
)
RANKER = replace(
    FAMILY,
    classes=("RobertaForSequenceClassification", "XLMRobertaForSequenceClassification"),
    metadata=_shortened(BERT_RANKER.metadata),
    dimensions=_ranking_dimensions,
    instead=no_other_family,
    renames=(),
    unused=(r"position_ids$", r"(^|\.)pooler\."),
    tensors=(*_TENSORS, *classifier_rules("classifier.dense", "classifier.out_proj")),
)

FAMILIES = (FAMILY, RANKER)
