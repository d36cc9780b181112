"""Settings of tiny models of the families with recurrent layers, per-layer embeddings and other newer parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from references.tiny_checkpoints import SIZES, TinyModel

DELTA_NET_ROUNDING = 5e-4
"""A delta net divides what it reads from its state by its size, rounding included. Over four seeds and both of
llama.cpp's ways (a chunk at once, token by token) its float32 was up to 9e-4 from float64, transformers' 1.3e-3."""

DELTA_NET: dict[str, Any] = {
    "num_hidden_layers": 4,
    "head_dim": 32,
    "rms_norm_eps": 1e-6,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
DELTA_NET_EXPERTS: dict[str, Any] = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 80,
}
SECTIONS: dict[str, Any] = {
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e4,
        "partial_rotary_factor": 0.5,
        "mrope_section": [3, 3, 2],
    }
}
EYES: dict[str, Any] = {
    "vision_config": {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 64}
}
QWEN35 = DELTA_NET | SECTIONS
QWEN35_KINDS = {"layer_types": ["full_attention", "linear_attention", "linear_attention", "full_attention"]}

QWEN35_MOE = QWEN35 | DELTA_NET_EXPERTS
WIDTHLESS = {key: each for key, each in SIZES.items() if key != "intermediate_size"}

_DELTA_NETS = (
    TinyModel("qwen-3-next", "Qwen3Next", DELTA_NET | DELTA_NET_EXPERTS),
    TinyModel(
        "qwen-3-next-fused", "Qwen3Next", DELTA_NET | DELTA_NET_EXPERTS | {"tie_word_embeddings": True},
        fused_experts=True,
    ),
    TinyModel("qwen-3.5", "Qwen3_5", QWEN35, config="Qwen3_5TextConfig"),
    TinyModel(
        "qwen-3.5-tied-in-another-order", "Qwen3_5",
        QWEN35 | QWEN35_KINDS | {"linear_num_key_heads": 4, "tie_word_embeddings": True},
        config="Qwen3_5TextConfig", fused_experts=True,
    ),
    TinyModel("qwen-3.5-with-eyes", "Qwen3_5", EYES | {"text_config": SIZES | QWEN35}, "ForConditionalGeneration"),
    TinyModel("qwen-3.5-moe", "Qwen3_5Moe", QWEN35_MOE, config="Qwen3_5MoeTextConfig"),
    TinyModel(
        "qwen-3.5-moe-with-eyes", "Qwen3_5Moe", EYES | {"text_config": WIDTHLESS | QWEN35_MOE},
        "ForConditionalGeneration",
    ),
)  # fmt: skip

HYBRIDS = (*(replace(tiny, tolerance=DELTA_NET_ROUNDING) for tiny in _DELTA_NETS),)
