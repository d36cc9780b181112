"""Tiny models that give embeddings or scores, each a line; what is asked of them is left to the tests."""

from __future__ import annotations

from typing import Any

from references.tiny_checkpoints import TinyModel

GELU_TABLE = 6e-3  # as in tests/export/test_architectures.py
PADDED: dict[str, Any] = {"pad_token_id": 1}

EMBEDDERS = (
    TinyModel("bert", "Bert", head="Model", tolerance=GELU_TABLE),
    TinyModel("bert-for-masked-lm", "Bert", head="ForMaskedLM", tolerance=GELU_TABLE),
    TinyModel("roberta", "Roberta", PADDED, "Model", tolerance=GELU_TABLE),
    TinyModel("roberta-for-masked-lm", "Roberta", PADDED, "ForMaskedLM", tolerance=GELU_TABLE),
    TinyModel("xlm-roberta", "XLMRoberta", PADDED, "Model", tolerance=GELU_TABLE),
    TinyModel("xlm-roberta-for-masked-lm", "XLMRoberta", PADDED, "ForMaskedLM", tolerance=GELU_TABLE),
)
RANKERS = (
    TinyModel("bert-ranker", "Bert", {"num_labels": 1}, "ForSequenceClassification", tolerance=GELU_TABLE),
    TinyModel("bert-classifier", "Bert", {"num_labels": 12}, "ForSequenceClassification", tolerance=GELU_TABLE),
    TinyModel("roberta-ranker", "Roberta", PADDED, "ForSequenceClassification", tolerance=GELU_TABLE),
    TinyModel(
        "xlm-roberta-ranker",
        "XLMRoberta",
        PADDED | {"num_labels": 1},
        "ForSequenceClassification",
        tolerance=GELU_TABLE,
    ),
)
