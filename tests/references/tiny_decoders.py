"""Tiny models of decoders beyond those that stand in `tests/export/test_architectures.py`, each a line.

How they are made and what is asked of them is left to `references.tiny_checkpoints` and the tests.
"""

from __future__ import annotations

from typing import Any

from references.tiny_checkpoints import SIZES, TinyModel

MINISTRAL3: dict[str, Any] = {
    "head_dim": 32,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 16.0,
        "original_max_position_embeddings": 16,  # so that queries are sharpened within the test's tokens
        "beta_fast": 24.0,
        "beta_slow": 1.5,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.4,
    },
}
PIXTRAL: dict[str, Any] = {
    "model_type": "pixtral",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "head_dim": 8,
}
MISTRAL_TEXT = SIZES | {"model_type": "mistral", "sliding_window": None}
MINISTRAL3_TEXT = SIZES | MINISTRAL3 | {"model_type": "ministral3", "tie_word_embeddings": True}

DECODERS = (
    TinyModel("ministral", "Ministral", {"sliding_window": 64, "head_dim": 32}),
    TinyModel("ministral-3", "Ministral3", MINISTRAL3),
    TinyModel(
        "mistral-small-3",
        "Mistral3",
        {"text_config": MISTRAL_TEXT, "vision_config": PIXTRAL},
        "ForConditionalGeneration",
    ),
    TinyModel(
        "ministral-3-of-multimodal",
        "Mistral3",
        {"text_config": MINISTRAL3_TEXT, "vision_config": PIXTRAL, "tie_word_embeddings": True},
        "ForConditionalGeneration",
        fused_experts=True,
    ),
)
