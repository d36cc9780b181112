"""Qwen 3: Qwen 2 with a norm on every query and key head, and heads of any width; and what ranks texts with it.

Of a reranker llama.cpp's graph gives the probability of each answer, not what the softmax is taken of.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import CheckpointError
from edgepack.export.arranged_rows import JoinedRows, PickedRows
from edgepack.export.checkpoint import read_json
from edgepack.export.rows import ArrayRows
from edgepack.export.rules.classifier import labels, ranking_metadata
from edgepack.export.rules.decoder import (
    LLAMA_NORMS,
    NO_ATTENTION_BIAS,
    SILU,
    WHOLE_HEADS,
    attention_rules,
    embedding_rules,
    feed_forward_rules,
    head_norm_rules,
    norm_rules,
)
from edgepack.export.rules.family import Family, TensorRule, no_other_family, standard_dimensions
from edgepack.export.rules.metadata import attention_window, common_metadata
from edgepack.files.source import read_small
from edgepack.gguf import keys
from edgepack.gguf.types import Value, string

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.export.rows import Rows

_ANSWERS = ["yes", "no"]
_QUESTION = """\
<|im_start|>system
Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the answer \
can only be "yes" or "no".<|im_end|>
<|im_start|>user
<Instruct>: Given a web search query, retrieve relevant passages that answer the query
<Query>: {query}
<Document>: {document}<|im_end|>
<|im_start|>assistant
<think>

</think>

"""
"""The prompt of the model card of Qwen3-Reranker, with llama.cpp's names for its two places."""


def _metadata(config: ModelConfig) -> dict[str, Value]:
    return common_metadata(config, "qwen3", window=attention_window(config))


def _answering_metadata(config: ModelConfig) -> dict[str, Value]:
    question = {f"{keys.CHAT_TEMPLATE}.rerank": string(_QUESTION)}
    return _metadata(config) | ranking_metadata(config, "qwen3", _ANSWERS) | question


def _scoring_metadata(config: ModelConfig) -> dict[str, Value]:
    names = labels(config)
    return _metadata(config) | ranking_metadata(config, "qwen3", names if len(names) > 1 else _ANSWERS)


def _scoring_dimensions(config: ModelConfig) -> dict[str, int]:
    return standard_dimensions(config) | {"labels": max(len(labels(config)), len(_ANSWERS))}


def _is_reranker(config: ModelConfig) -> bool:
    """A causal model that answers yes or no, known by its name or its card's heading, as llama.cpp knows it."""
    names = [str(config.get("_name_or_path") or "")]
    card = ""
    if config.folder is not None:
        names += config.folder.resolve().parts[-3:]  # the third from the end names a snapshot of a cache
        path = config.folder / "README.md"
        card = read_small(path, CheckpointError).decode("utf-8", "replace") if path.is_file() else ""
    return "# qwen3-reranker" in card.lower() or any("qwen3-reranker" in name.lower() for name in names)


def _reranker(config: ModelConfig) -> Family | None:
    return RERANKER if _is_reranker(config) else None


def _answers(rows: Rows, config: ModelConfig) -> Rows:
    """The head's rows of yes and no."""
    if config.folder is None:
        raise CheckpointError(f"{config.label}: a reranker needs its tokenizer.json beside it")
    model = read_json(config.folder / "tokenizer.json").get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    found = [vocabulary.get(answer) if isinstance(vocabulary, dict) else None for answer in _ANSWERS]
    for answer, token in zip(_ANSWERS, found, strict=True):
        if type(token) is not int or not 0 <= token < rows.shape[0]:
            raise CheckpointError(f"tokenizer.json: expected a token '{answer}', which the reranker answers with")
    return PickedRows(rows, np.array(found, dtype=np.intp))


def _against_zero(rows: Rows, _config: ModelConfig) -> Rows:
    """A single score becomes two, itself and 0, because the softmax of one is always 1."""
    if len(rows.shape) != 2 or rows.shape[0] != 1:
        return rows
    return JoinedRows((rows, ArrayRows(np.zeros(rows.shape, dtype=np.float32))), (2, rows.shape[1]))


_LAYERS = (*norm_rules(LLAMA_NORMS), *attention_rules(bias=False), *head_norm_rules(), *feed_forward_rules())
_HEADLESS = tuple(rule for rule in embedding_rules() if rule.target != "output.weight")

FAMILY = Family(
    name="qwen3",
    classes=("Qwen3ForCausalLM", "Qwen3Model"),
    defaults={
        "num_key_value_heads": 32,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
        "use_sliding_window": False,
        "sliding_window": 4096,
    },
    metadata=_metadata,
    headless=True,
    renames=(("model.", ""),),  # saved without a head
    requirements=(SILU, WHOLE_HEADS, NO_ATTENTION_BIAS),
    instead=_reranker,
    tensors=(*embedding_rules(), *_LAYERS),
)
RERANKER = replace(
    FAMILY,
    classes=("Qwen3ForCausalLM",),
    metadata=_answering_metadata,
    instead=no_other_family,
    tied_head=None,
    unused=(*FAMILY.unused, r"^lm_head\.weight$"),  # but for the rows of the answers
    tensors=(
        *_HEADLESS,
        *_LAYERS,
        TensorRule("cls.output.weight", "lm_head.weight", "2 d", _answers, when=lambda config, _layer: not config.tied),
        TensorRule(
            "cls.output.weight",
            "model.embed_tokens.weight",
            "2 d",
            _answers,
            when=lambda config, _layer: config.tied,
        ),
    ),
)
CLASSIFIER = replace(
    FAMILY,
    instead=no_other_family,
    classes=("Qwen3ForSequenceClassification",),
    metadata=_scoring_metadata,
    dimensions=_scoring_dimensions,
    unused=(*FAMILY.unused, r"^lm_head\.weight$"),
    tensors=(*_HEADLESS, *_LAYERS, TensorRule("cls.output.weight", "score.weight", "labels d", _against_zero)),
)

FAMILIES = (FAMILY, CLASSIFIER)
