"""Tiny models of decoders beyond those that stand in `tests/export/test_architectures.py`, each a line.

How they are made and what is asked of them is left to `references.tiny_checkpoints` and the tests.
"""

from __future__ import annotations

from typing import Any

from references.tiny_checkpoints import SIZES, TinyModel

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
GLM_MOE: dict[str, Any] = {
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 2,
    "moe_intermediate_size": 48,
    "routed_scaling_factor": 2.5,
    "head_dim": 32,
}
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
SIGLIP: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
LFM2_TEXT = SIZES | {
    "model_type": "lfm2",
    "layer_types": ["conv", "full_attention"],
    "tie_word_embeddings": True,
    "norm_eps": 0.01,
}
MISTRAL_TEXT = SIZES | {"model_type": "mistral", "sliding_window": None}
MINISTRAL3_TEXT = SIZES | MINISTRAL3 | {"model_type": "ministral3", "tie_word_embeddings": True}
QWEN_EYES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "depth": 1,
    "num_heads": 2,
    "out_hidden_size": 64,
}
QWEN2_EYES: dict[str, Any] = {"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 64}
# Sections are of 8 pairs; llama.cpp's graph of Qwen 2 VL leaves the epsilon out: with that of the published models, 1e-6, logits differ by 5e-4.
QWEN2_VL_TEXT = SIZES | {
    "rms_norm_eps": 1e-12,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
}
QWEN2_VL_YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "mrope_section": [2, 3, 3],
}
QWEN3_VL_TEXT = SIZES | {
    "head_dim": 32,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [6, 5, 5]},
}
QWEN3_VL_EYES = QWEN_EYES | {"deepstack_visual_indexes": [0]}
QWEN3_VL_EXPERTS: dict[str, Any] = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
LATENT: dict[str, Any] = {
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,  # the latents' norms have no other
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 24,
    "v_head_dim": 20,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 2,
    "moe_intermediate_size": 48,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
    "n_group": 1,
    "topk_group": 1,
}
LATENT_YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 32,
}
GLM_FLASH = {key: value for key, value in LATENT.items() if key != "first_k_dense_replace"}
EXAONE_32B: dict[str, Any] = {  # known to llama.cpp by its layers
    "num_hidden_layers": 64,
    "sliding_window": 16,
    "rope_parameters": LLAMA3,
}
HUNYUAN_ALPHA = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 1.0, "alpha": 50.0}
HUNYUAN_MOE: dict[str, Any] = {"head_dim": 32, "num_experts": 8, "rope_parameters": HUNYUAN_ALPHA}
ERNIE_MOE: dict[str, Any] = {
    "num_hidden_layers": 3,
    "moe_num_experts": 8,
    "moe_k": 2,
    "moe_intermediate_size": 48,
    "moe_layer_end_index": 2,
}
GELU_TABLE = 6e-3  # as in tests/export/test_architectures.py
BIASED: dict[str, Any] = {"attention_bias": True, "mlp_bias": True}
LLAMA4: dict[str, Any] = {
    "num_hidden_layers": 5,
    "head_dim": 32,
    "intermediate_size": 48,
    "intermediate_size_mlp": 96,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "interleave_moe_layer_step": 2,
    "rope_parameters": LLAMA3,
}
LLAMA4_EYES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vision_output_dim": 16,
    "projector_input_dim": 16,
    "projector_output_dim": 16,
}
LLAMA4_WITHOUT_NORMS: dict[str, Any] = {  # known to llama.cpp by its experts
    "num_local_experts": 128,
    "intermediate_size": 32,
    "num_experts_per_tok": 1,
    "use_qk_norm": False,
}
MINICPM3: dict[str, Any] = {key: LATENT[key] for key in LATENT if "expert" not in key and "group" not in key} | {
    "dim_model_base": 256
}
LATENT_LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "long_factor": [1.0 + 0.5 * i for i in range(4)],
    "short_factor": [1.0 + 0.1 * i for i in range(4)],
    "original_max_position_embeddings": 32,
}
FALCON: dict[str, Any] = {"ffn_hidden_size": 96, "tie_word_embeddings": True}
FALCON_40B: dict[str, Any] = {"new_decoder_architecture": True, "num_kv_heads": 2}

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
    TinyModel(
        "qwen-2-vl", "Qwen2VL", {"text_config": QWEN2_VL_TEXT, "vision_config": QWEN2_EYES}, "ForConditionalGeneration"
    ),
    TinyModel(
        "qwen-2.5-vl",
        "Qwen2_5_VL",
        {"text_config": QWEN2_VL_TEXT, "vision_config": QWEN_EYES},
        "ForConditionalGeneration",
    ),
    TinyModel(
        "qwen-2.5-vl-yarn",
        "Qwen2_5_VL",
        {"text_config": QWEN2_VL_TEXT | {"rope_parameters": QWEN2_VL_YARN}, "vision_config": QWEN_EYES},
        "ForConditionalGeneration",
        fused_experts=True,
    ),
    TinyModel(
        "qwen-3-vl",
        "Qwen3VL",
        {"text_config": QWEN3_VL_TEXT, "vision_config": QWEN3_VL_EYES, "tie_word_embeddings": False},
        "ForConditionalGeneration",
    ),
    TinyModel(
        "qwen-3-vl-moe",
        "Qwen3VLMoe",
        {"text_config": QWEN3_VL_TEXT | QWEN3_VL_EXPERTS, "vision_config": QWEN3_VL_EYES, "tie_word_embeddings": False},
        "ForConditionalGeneration",
    ),
    TinyModel(
        "qwen-3-vl-moe-as-held",
        "Qwen3VLMoe",
        {
            "text_config": QWEN3_VL_TEXT | QWEN3_VL_EXPERTS | {"tie_word_embeddings": True},
            "vision_config": QWEN3_VL_EYES,
            "tie_word_embeddings": True,
        },
        "ForConditionalGeneration",
        fused_experts=True,
    ),
    TinyModel(
        "qwen-2-moe-wide", "Qwen2Moe", QWEN3_VL_EXPERTS | {"shared_expert_intermediate_size": 1024}
    ),  # the shared expert decides the compute buffer
    TinyModel("deepseek-2", "DeepseekV2", LATENT),
    TinyModel(
        "deepseek-2-lite",
        "DeepseekV2",
        LATENT | {"q_lora_rank": None, "rope_parameters": LATENT_YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}},
    ),
    TinyModel("deepseek-2-tied", "DeepseekV2", LATENT | {"tie_word_embeddings": True}, fused_experts=True),
    TinyModel(
        "deepseek-3",
        "DeepseekV3",
        LATENT
        | {
            "n_group": 4,
            "topk_group": 2,
            "rope_parameters": LATENT_YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ),
    TinyModel(
        "deepseek-3-growing",
        "DeepseekV3",
        LATENT | {"rope_parameters": LATENT_YARN | {"mscale": 1.5, "mscale_all_dim": 0.5}, "norm_topk_prob": False},
    ),
    TinyModel("deepseek-3-plain-yarn", "DeepseekV3", LATENT | {"rope_parameters": LATENT_YARN, "q_lora_rank": None}),
    TinyModel("deepseek-3-in-halves", "DeepseekV3", LATENT | {"rope_interleave": False}, fused_experts=True),
    TinyModel("glm-4.7-flash", "Glm4MoeLite", GLM_FLASH),
    TinyModel(
        "mistral-4",
        "Mistral4",
        LATENT | {"rope_parameters": MINISTRAL3["rope_parameters"] | {"beta_fast": 32.0, "beta_slow": 1.0}},
    ),
    TinyModel("olmo-3", "Olmo3", {"num_hidden_layers": 5, "sliding_window": 16}),
    TinyModel(
        "olmo-3-yarn",
        "Olmo3",
        {
            "num_hidden_layers": 5,
            "sliding_window": 16,
            "rope_parameters": {"full_attention": YARN, "sliding_attention": {"rope_theta": 10000.0}},
        },
    ),
    TinyModel("olmo-3-without-window", "Olmo3", {"layer_types": ["full_attention"] * 2}),
    TinyModel("olmoe", "Olmoe", {"num_key_value_heads": 4, "num_experts": 8, "num_experts_per_tok": 2}),
    TinyModel(
        "olmoe-tied-and-fused",
        "Olmoe",
        {"num_key_value_heads": 4, "num_experts": 4, "num_experts_per_tok": 2, "tie_word_embeddings": True},
        fused_experts=True,
    ),
    TinyModel(
        "exaone-4",
        "Exaone4",
        {"sliding_window": None, "tie_word_embeddings": True, "layer_types": ["full_attention"] * 2},
    ),
    TinyModel("exaone-4-32b", "Exaone4", EXAONE_32B),
    TinyModel("hunyuan", "HunYuanDenseV1", {"head_dim": 32, "tie_word_embeddings": True}),
    TinyModel("hunyuan-alpha", "HunYuanDenseV1", {"head_dim": 32, "rope_parameters": HUNYUAN_ALPHA}),
    TinyModel("hunyuan-moe", "HunYuanMoEV1", HUNYUAN_MOE | {"moe_topk": 2}),
    TinyModel("hunyuan-moe-fused", "HunYuanMoEV1", HUNYUAN_MOE | {"moe_topk": [3, 3]}, fused_experts=True),
    TinyModel("ernie-4.5", "Ernie4_5", {"head_dim": 32}),
    TinyModel("ernie-4.5-moe", "Ernie4_5_Moe", ERNIE_MOE),
    TinyModel(
        "ernie-4.5-moe-fused",
        "Ernie4_5_Moe",
        ERNIE_MOE | {"moe_layer_start_index": 0, "moe_num_shared_experts": 0},
        fused_experts=True,
    ),
    TinyModel(
        "cohere-2",
        "Cohere2",
        {"num_hidden_layers": 5, "sliding_window": 16, "tie_word_embeddings": True, "logit_scale": 0.25},
    ),
    TinyModel("seed-oss", "SeedOss", {"head_dim": 32, "attention_out_bias": False}),
    TinyModel("phi-2", "Phi", tolerance=GELU_TABLE),
    TinyModel("phi-2-tied", "Phi", {"tie_word_embeddings": True, "num_key_value_heads": 4}, tolerance=GELU_TABLE),
    TinyModel("stablelm", "StableLm", {"use_qkv_bias": True}),
    TinyModel("stablelm-12b", "StableLm", {"qk_layernorm": True, "use_parallel_residual": True}),
    TinyModel("apertus", "Apertus", {"rope_parameters": LLAMA3}),
    TinyModel("apertus-tied", "Apertus", {"tie_word_embeddings": True, "attention_bias": True}),
    TinyModel("arcee", "Arcee", {"head_dim": 32, "rope_parameters": YARN}),
    TinyModel("nemotron", "Nemotron", {"norm_eps": 0.01}),
    TinyModel("nemotron-with-biases", "Nemotron", BIASED | {"tie_word_embeddings": True}),
    TinyModel("llama-4", "Llama4", LLAMA4, config="Llama4TextConfig"),
    TinyModel("llama-4-without-norms", "Llama4", LLAMA4 | LLAMA4_WITHOUT_NORMS, config="Llama4TextConfig"),
    TinyModel(
        "llama-4-of-multimodal",
        "Llama4",
        {"text_config": SIZES | LLAMA4, "vision_config": LLAMA4_EYES},
        "ForConditionalGeneration",
    ),
    TinyModel("minicpm-3", "MiniCPM3", MINICPM3),
    TinyModel("minicpm-3-long", "MiniCPM3", MINICPM3 | {"rope_parameters": LATENT_LONGROPE}),
    TinyModel("falcon-7b", "Falcon", FALCON, tolerance=GELU_TABLE),
    TinyModel("falcon-40b", "Falcon", FALCON | FALCON_40B | {"tie_word_embeddings": False}, tolerance=GELU_TABLE),
    TinyModel("falcon-11b", "Falcon", FALCON | FALCON_40B | {"num_ln_in_parallel_attn": 1}, tolerance=GELU_TABLE),
    *(
        TinyModel(
            name, family, {"text_config": text, "vision_config": eyes}, "ForConditionalGeneration", fused_experts=new
        )
        for name, family, text, eyes, new in (
            ("smolvlm", "SmolVLM", SIZES | {"model_type": "llama"}, SIGLIP, False),
            ("idefics-3", "Idefics3", SIZES | {"model_type": "llama"}, SIGLIP, True),
            ("llava", "Llava", SIZES | {"model_type": "llama"}, SIGLIP | {"model_type": "siglip_vision_model"}, False),
            ("llava-mistral", "Llava", MISTRAL_TEXT, PIXTRAL, True),
            ("llava-qwen-2", "Llava", SIZES | {"model_type": "qwen2"}, PIXTRAL, False),
            ("lfm-2-vl", "Lfm2Vl", LFM2_TEXT, SIGLIP | {"model_type": "siglip2_vision_model"}, False),
        )
    ),
    TinyModel("bitnet", "BitNet", {"hidden_act": "silu", "tie_word_embeddings": True}),
)
