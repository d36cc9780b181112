"""Settings of tiny models of the families with recurrent layers, per-layer embeddings and other newer parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from references.tiny_checkpoints import SIZES, VOCABULARY, TinyModel

GELU_TABLE = 6e-3
"""ggml looks GELU up in a table of half-precision numbers."""

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

GEMMA4: dict[str, Any] = {
    "num_hidden_layers": 6,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
    "head_dim": 16,
    "global_head_dim": 32,
    "sliding_window": 16,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": VOCABULARY,
    "num_kv_shared_layers": 2,
    "tie_word_embeddings": True,
}
GEMMA4_LARGE: dict[str, Any] = {
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
    "final_logit_softcapping": 3.0,
}
GEMMA4_EXPERTS: dict[str, Any] = {
    "enable_moe_block": True,
    "num_experts": 8,
    "top_k_experts": 2,
    "moe_intermediate_size": 48,
}
GEMMA4_EYES: dict[str, Any] = {
    "vision_config": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                      "num_key_value_heads": 2, "head_dim": 8, "position_embedding_size": 16},
    "audio_config": None,
}  # fmt: skip
GEMMA4_UNIFIED = {key: each for key, each in GEMMA4.items() if "per_layer" not in key} | {
    key: each for key, each in GEMMA4_LARGE.items() if "per_layer" not in key
}
GEMMA4_EMBEDDERS: dict[str, Any] = {
    "vision_config": {"mm_embed_dim": 16, "mm_posemb_size": 8, "patch_size": 2, "output_proj_dims": 16},
    "audio_config": {"audio_embed_dim": 16},
}
# llama.cpp fixes the depth, rank and widths of Gemma 3n.
GEMMA3N: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 22,
    "num_kv_shared_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "sliding_window": 16,
    "vocab_size_per_layer_input": 4000,
    "tie_word_embeddings": True,
}
_GEMMAS = (
    TinyModel("gemma-3n", "Gemma3n", GEMMA3N, config="Gemma3nTextConfig"),
    TinyModel("gemma-4-e2b", "Gemma4", GEMMA4 | {"use_double_wide_mlp": True}, config="Gemma4TextConfig"),
    TinyModel("gemma-4-31b", "Gemma4", GEMMA4 | GEMMA4_LARGE, config="Gemma4TextConfig"),
    TinyModel("gemma-4-26b", "Gemma4", GEMMA4 | GEMMA4_LARGE | GEMMA4_EXPERTS, config="Gemma4TextConfig"),
    TinyModel(
        "gemma-4-with-eyes", "Gemma4", GEMMA4_EYES | {"text_config": SIZES | GEMMA4, "tie_word_embeddings": True},
        "ForConditionalGeneration",
    ),
    TinyModel("gemma-4-12b", "Gemma4Unified", GEMMA4_UNIFIED, config="Gemma4UnifiedTextConfig"),
    TinyModel(
        "gemma-4-12b-with-embedders", "Gemma4Unified",
        GEMMA4_EMBEDDERS | {"text_config": SIZES | GEMMA4_UNIFIED, "tie_word_embeddings": True},
        "ForConditionalGeneration",
    ),
)  # fmt: skip

LFM2: dict[str, Any] = {
    "num_hidden_layers": 4,
    "layer_types": ["conv", "full_attention", "conv", "full_attention"],
    "norm_eps": 0.01,
    "block_multiple_of": 32,
    "tie_word_embeddings": True,
}
LFM2_EXPERTS = {key: each for key, each in LFM2.items() if key != "block_multiple_of"} | {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "num_dense_layers": 2,
}
_LFMS = (
    TinyModel("lfm-2", "Lfm2", LFM2),
    TinyModel("lfm-2.5", "Lfm2", LFM2 | {"block_auto_adjust_ff_dim": False, "tie_word_embeddings": False}),
    TinyModel("lfm-2-moe", "Lfm2Moe", LFM2_EXPERTS),
    TinyModel("lfm-2-moe-fused", "Lfm2Moe", LFM2_EXPERTS, fused_experts=True),
)

GRANITE: dict[str, Any] = {
    "attention_multiplier": 0.2,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "logits_scaling": 8.0,
}
GRANITE_EXPERTS = GRANITE | {"num_local_experts": 8, "num_experts_per_tok": 2}
GRANITE4: dict[str, Any] = GRANITE | {
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "num_local_experts": 0,
    "shared_intermediate_size": 80,
    "mamba_n_heads": 8,
    "mamba_d_state": 16,
    "mamba_n_groups": 2,
}
GRANITE4_PLAIN = GRANITE4 | {"layer_types": ["full_attention"] * 3, "position_embedding_type": "rope"}
_GRANITES = (
    TinyModel("granite-moe", "GraniteMoe", GRANITE_EXPERTS),
    TinyModel("granite-moe-fused", "GraniteMoe", GRANITE_EXPERTS, fused_experts=True),
    TinyModel("granite-moe-shared", "GraniteMoeShared", GRANITE_EXPERTS | {"shared_intermediate_size": 80}),
    TinyModel("granite-4-hybrid", "GraniteMoeHybrid", GRANITE4),
    TinyModel("granite-4-hybrid-turned", "GraniteMoeHybrid", GRANITE4 | {"position_embedding_type": "rope"}),
    TinyModel("granite-4-hybrid-moe", "GraniteMoeHybrid", GRANITE4 | GRANITE_EXPERTS),
    TinyModel("granite-4-dense", "GraniteMoeHybrid", GRANITE4_PLAIN),
    TinyModel("granite-4-moe", "GraniteMoeHybrid", GRANITE4_PLAIN | GRANITE_EXPERTS),
)

GPT_OSS: dict[str, Any] = {
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "head_dim": 32,
    "sliding_window": 16,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "truncate": True,
    },
}
_OSS = (
    TinyModel("gpt-oss", "GptOss", GPT_OSS),
    TinyModel("gpt-oss-tied", "GptOss", GPT_OSS | {"tie_word_embeddings": True, "num_hidden_layers": 3}),
)

MAMBA2: dict[str, Any] = {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 2}
_MAMBAS = (
    TinyModel("mamba", "Mamba", {"state_size": 8, "intermediate_size": 128, "tie_word_embeddings": True}),
    TinyModel(
        "falcon-mamba",
        "FalconMamba",
        {"state_size": 8, "intermediate_size": 128, "tie_word_embeddings": True, "mixer_rms_eps": 0.01},
    ),
    TinyModel("mamba-2", "Mamba2", MAMBA2),
    TinyModel("mamba-2-tied", "Mamba2", MAMBA2 | {"n_groups": 1, "tie_word_embeddings": True}),
)

FALCON_H1: dict[str, Any] = {
    "mamba_d_ssm": 96,
    "mamba_n_heads": 8,
    "mamba_d_head": 12,
    "mamba_d_state": 16,
    "mamba_n_groups": 2,
    "mamba_expand": 2,
    "embedding_multiplier": 2.5,
    "lm_head_multiplier": 0.7,
    "mlp_multipliers": [0.8, 1.3],
    "ssm_multipliers": [0.6, 1.2, 0.9, 1.4, 0.7],
    "attention_in_multiplier": 1.1,
    "attention_out_multiplier": 0.9,
    "key_multiplier": 0.5,
    "ssm_in_multiplier": 1.25,
    "ssm_out_multiplier": 0.75,
}
_FALCONS = (
    TinyModel("falcon-h1", "FalconH1", FALCON_H1),
    TinyModel(
        "falcon-h1-tied-with-norms", "FalconH1",
        FALCON_H1 | {"mamba_rms_norm": True, "mamba_norm_before_gate": False, "tie_word_embeddings": True},
    ),
)  # fmt: skip

NEMOTRON_H: dict[str, Any] = {
    "num_hidden_layers": None,
    "layers_block_type": ["linear_attention", "mlp", "full_attention", "linear_attention", "mlp"],
    "head_dim": 32,
    "ssm_state_size": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 12,
    # llama.cpp does not clamp steps from below: none is small enough here for that to matter
    "time_step_min": 1e-9,
    "time_step_max": 1.0,
    "time_step_floor": 0.5,
    "n_groups": 2,
}
NEMOTRON_H_EXPERTS = NEMOTRON_H | {
    "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "moe_shared_expert_intermediate_size": 80,
    "routed_scaling_factor": 2.5,
    "n_group": 4,
    "topk_group": 2,
}
_NEMOTRONS = (
    TinyModel("nemotron-h", "NemotronH", NEMOTRON_H),
    TinyModel("nemotron-h-with-biases", "NemotronH", NEMOTRON_H | {"mlp_bias": True}, fused_experts=True),
    TinyModel("nemotron-3", "NemotronH", NEMOTRON_H_EXPERTS),
    TinyModel(
        "nemotron-3-latent", "NemotronH",
        NEMOTRON_H_EXPERTS | {"moe_latent_size": 32, "n_group": 1, "topk_group": 1}, fused_experts=True,
    ),
)  # fmt: skip

JAMBA: dict[str, Any] = {
    "num_hidden_layers": 4,
    "attn_layer_period": 3,
    "attn_layer_offset": 1,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "mamba_d_state": 8,
}
_JAMBAS = (
    TinyModel("jamba", "Jamba", JAMBA),
    TinyModel("jamba-fused", "Jamba", JAMBA | {"tie_word_embeddings": True}, fused_experts=True),
)

HYBRIDS = (
    *_JAMBAS,
    *_NEMOTRONS,
    *_FALCONS,
    *_MAMBAS,
    *_OSS,
    *_GRANITES,
    *_LFMS,
    TinyModel("gemma-1", "Gemma", {"head_dim": 32, "tie_word_embeddings": True}, tolerance=GELU_TABLE),
    *(replace(tiny, tolerance=GELU_TABLE, as_ggml=True) for tiny in _GEMMAS),
    *(replace(tiny, tolerance=DELTA_NET_ROUNDING) for tiny in _DELTA_NETS),
)
