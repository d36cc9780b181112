"""Tiny models that give embeddings or scores, each a line; what is asked of them is left to the tests."""

from __future__ import annotations

from typing import Any

from references.tiny_checkpoints import TinyModel

GELU_TABLE = 6e-3  # as in tests/export/test_architectures.py
PADDED: dict[str, Any] = {"pad_token_id": 1, "max_position_embeddings": 258}  # of which the first two are no places
EMBEDDING_GEMMA: dict[str, Any] = {
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 16,
    "num_hidden_layers": 7,
    "tie_word_embeddings": True,
    "use_bidirectional_attention": True,
}
MODERN: dict[str, Any] = {
    "local_attention": 16,
    "num_hidden_layers": 5,
    "norm_eps": 0.01,
    "cls_token_id": 1,
    "sep_token_id": 2,
}

EMBEDDERS = (
    TinyModel("bert", "Bert", head="Model", tolerance=GELU_TABLE),
    TinyModel("bert-for-masked-lm", "Bert", head="ForMaskedLM", tolerance=GELU_TABLE),
    TinyModel("roberta", "Roberta", PADDED, "Model", tolerance=GELU_TABLE),
    TinyModel("roberta-for-masked-lm", "Roberta", PADDED, "ForMaskedLM", tolerance=GELU_TABLE),
    TinyModel("xlm-roberta", "XLMRoberta", PADDED, "Model", tolerance=GELU_TABLE),
    TinyModel("xlm-roberta-for-masked-lm", "XLMRoberta", PADDED, "ForMaskedLM", tolerance=GELU_TABLE),
    TinyModel("qwen-3-embedding", "Qwen3", {"head_dim": 32}, "Model"),
    TinyModel("qwen-2-embedding", "Qwen2", head="Model"),
    TinyModel("llama-embedding", "Llama", head="Model"),
    TinyModel("mistral-embedding", "Mistral", {"sliding_window": None}, "Model"),
    TinyModel(
        "embedding-gemma",
        "Gemma3",
        EMBEDDING_GEMMA,
        "TextModel",
        config="Gemma3TextConfig",
        tolerance=GELU_TABLE,
    ),
    TinyModel("modern-bert", "ModernBert", MODERN, "Model", tolerance=GELU_TABLE),
    TinyModel("modern-bert-with-silu", "ModernBert", MODERN | {"hidden_activation": "silu"}, "ForMaskedLM"),
    TinyModel("nomic-bert", "NomicBert", head="Model"),
    TinyModel("nomic-bert-as-held", "NomicBert", {"tie_word_embeddings": True}, "ForMaskedLM", fused_experts=True),
    TinyModel("jina-3", "JinaEmbeddingsV3", PADDED, "Model", tolerance=GELU_TABLE),
    TinyModel("jina-3-as-held", "JinaEmbeddingsV3", PADDED, "Model", fused_experts=True, tolerance=GELU_TABLE),
    TinyModel("jina-3-for-masked-lm", "JinaEmbeddingsV3", PADDED, "ForMaskedLM", tolerance=GELU_TABLE),
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
    TinyModel("qwen-3-ranker", "Qwen3", {"head_dim": 32, "num_labels": 1}, "ForSequenceClassification"),
    TinyModel("qwen-3-classifier", "Qwen3", {"head_dim": 32, "num_labels": 3}, "ForSequenceClassification"),
    TinyModel(
        "modern-bert-ranker",
        "ModernBert",
        MODERN | {"num_labels": 1, "classifier_pooling": "mean"},
        "ForSequenceClassification",
        tolerance=GELU_TABLE,
    ),
    TinyModel("modern-bert-classifier", "ModernBert", MODERN, "ForSequenceClassification", tolerance=GELU_TABLE),
)
