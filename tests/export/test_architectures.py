"""Each family, exported to f32 and run by llama.cpp, gives the logits that transformers computes."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from references.family_oracle import (
    as_ggml_computes,
    assert_equal_logits,
    assert_equal_types,
    exported,
    llama_logits,
    token_ids,
    torch_logits,
)
from references.hybrid_models import HYBRIDS
from references.tiny_checkpoints import SIZES, TinyModel, random_model, write_checkpoint
from references.tiny_decoders import DECODERS, GLM_MOE
from references.tiny_encoders import EMBEDDERS, RANKERS
from safetensors.torch import load_file, save_file

from edgepack.edge.llama.options import RuntimeOptions
from edgepack.edge.llama.runtime import LoadedModel
from edgepack.errors import UnsupportedModelError
from edgepack.export.arranged_rows import SlicedExperts
from edgepack.export.mapped_model import open_model
from edgepack.export.rows import ArrayRows
from edgepack.export.rules.mapping import families

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

GELU_TABLE = 6e-3  # ggml looks GELU up in a table of half-precision numbers
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
EXPERTS: dict[str, Any] = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
GEMMA: dict[str, Any] = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16, "tie_word_embeddings": True}
GEMMA2_27B: dict[str, Any] = {  # known to llama.cpp by its 46 layers; wide, as GELU's rounding adds up over them
    "num_hidden_layers": 46,
    "hidden_size": 128,
    "intermediate_size": 512,
    "head_dim": 16,
    "query_pre_attn_scalar": 32,
    "rms_norm_eps": 1e-6,
}
GEMMA3_SCALED: dict[str, Any] = {
    "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    "num_hidden_layers": 3,
    "final_logit_softcapping": 3.0,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}
GEMMA3_WITH_EYES: dict[str, Any] = {
    "text_config": SIZES | GEMMA,
    "tie_word_embeddings": True,
    "vision_config": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "long_factor": [1.0 + 0.5 * i for i in range(8)],
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
}
GPT2: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "tie_word_embeddings": True}
GRANITE: dict[str, Any] = {
    "attention_multiplier": 0.2,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "logits_scaling": 8.0,
}

# Adding a family: one line here.
MODELS = (
    TinyModel("llama-2", "Llama", {"num_key_value_heads": 4}),
    TinyModel("llama-3", "Llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    TinyModel("llama-3.1", "Llama", {"rope_parameters": LLAMA3, "head_dim": 32}),
    TinyModel("llama-with-biases", "Llama", {"attention_bias": True, "mlp_bias": True}),
    TinyModel("llama-linear", "Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    TinyModel("llama-yarn", "Llama", {"rope_parameters": YARN}),
    TinyModel("llama-yarn-with-attention-factor", "Llama", {"rope_parameters": YARN | {"attention_factor": 1.5}}),
    TinyModel("mistral", "Mistral", {"sliding_window": None}),
    TinyModel("mistral-in-its-window", "Mistral", {"sliding_window": 64}),
    TinyModel("mixtral", "Mixtral", {"num_local_experts": 8}),
    TinyModel("mixtral-fused", "Mixtral", {"num_local_experts": 4}, fused_experts=True),
    TinyModel("qwen-2", "Qwen2"),
    TinyModel("qwen-2-yarn", "Qwen2", {"rope_parameters": YARN, "tie_word_embeddings": True}),
    TinyModel("qwen-2-moe", "Qwen2Moe", EXPERTS | {"shared_expert_intermediate_size": 80}),
    TinyModel("qwen-2-moe-tied-and-fused", "Qwen2Moe", EXPERTS | {"tie_word_embeddings": True}, fused_experts=True),
    TinyModel("qwen-3", "Qwen3", {"head_dim": 32}),
    TinyModel("qwen-3-moe", "Qwen3Moe", EXPERTS | {"head_dim": 32, "norm_topk_prob": True}),
    TinyModel("qwen-3-moe-fused", "Qwen3Moe", EXPERTS | {"norm_topk_prob": True}, fused_experts=True),
    TinyModel(
        "gemma-2", "Gemma2", GEMMA | {"num_hidden_layers": 3, "attn_logit_softcapping": 2.0}, tolerance=GELU_TABLE
    ),
    TinyModel("gemma-2-27b", "Gemma2", GEMMA | GEMMA2_27B, tolerance=GELU_TABLE),
    TinyModel("gemma-3", "Gemma3", GEMMA | {"num_hidden_layers": 7}, config="Gemma3TextConfig", tolerance=GELU_TABLE),
    TinyModel("gemma-3-scaled", "Gemma3", GEMMA | GEMMA3_SCALED, config="Gemma3TextConfig", tolerance=GELU_TABLE),
    TinyModel("gemma-3-of-multimodal", "Gemma3", GEMMA3_WITH_EYES, "ForConditionalGeneration", tolerance=GELU_TABLE),
    TinyModel(
        "gemma-3-of-multimodal-as-held",
        "Gemma3",
        GEMMA3_WITH_EYES,
        "ForConditionalGeneration",
        fused_experts=True,
        tolerance=GELU_TABLE,
    ),
    TinyModel("phi-3", "Phi3", {"original_max_position_embeddings": 256}),
    TinyModel("phi-3-long", "Phi3", {"original_max_position_embeddings": 32, "rope_parameters": LONGROPE}),
    TinyModel("phi-3-short", "Phi3", {"original_max_position_embeddings": 256, "rope_parameters": LONGROPE}),
    TinyModel("phi-4-mini", "Phi3", {"partial_rotary_factor": 0.75, "tie_word_embeddings": True}),
    TinyModel("glm-4", "Glm4", {"head_dim": 32, "attention_bias": True}),
    TinyModel("glm-4-moe", "Glm4Moe", GLM_MOE | {"use_qk_norm": True}),
    TinyModel("glm-4-moe-fused", "Glm4Moe", GLM_MOE | {"norm_topk_prob": False}, fused_experts=True),
    TinyModel("glm-4-moe-in-groups", "Glm4Moe", GLM_MOE | {"n_group": 4, "topk_group": 2, "attention_bias": True}),
    TinyModel("gpt-2", "GPT2", GPT2, head="LMHeadModel", tolerance=GELU_TABLE),
    TinyModel("gpt-neox", "GPTNeoX", {"rotary_pct": 0.5}, tolerance=GELU_TABLE),
    TinyModel(
        "gpt-neox-in-turn", "GPTNeoX", {"use_parallel_residual": False}, fused_experts=True, tolerance=GELU_TABLE
    ),
    TinyModel("gpt-neox-tied", "GPTNeoX", {"tie_word_embeddings": True}, tolerance=GELU_TABLE),
    TinyModel("smollm-3", "SmolLM3", {"num_hidden_layers": 5, "tie_word_embeddings": True}),
    TinyModel("granite", "Granite", GRANITE),
    TinyModel("olmo-2", "Olmo2"),
    TinyModel("olmo-2-tied", "Olmo2", {"tie_word_embeddings": True}),
    TinyModel("starcoder-2", "Starcoder2", tolerance=GELU_TABLE),
    *DECODERS,
    *HYBRIDS,
)

OTHER_SPELLINGS = {
    "LLaMAForCausalLM",
    "LFM2ForCausalLM",
    "Ernie4_5_ForCausalLM",
    "StableLMEpochForCausalLM",
    "RWForCausalLM",
}
RELABELLED = {  # in tests of their own
    "BaichuanForCausalLM",
    "BaiChuanForCausalLM",
    "InternLM3ForCausalLM",
    "RWKV7ForCausalLM",
    "Gemma3nForConditionalGeneration",
    "JinaBertModel",
    "JinaBertForMaskedLM",
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from threads, and spinning ones slow everybody down."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("tiny", MODELS, ids=lambda tiny: tiny.name)
def test_logits_equal_those_of_transformers_and_types_those_of_llama_quantize(
    tiny: TinyModel, books: Path, tmp_path: Path
) -> None:
    model, ids = random_model(tiny), token_ids()
    folder = write_checkpoint(model, tmp_path / "model", books, fused_experts=tiny.fused_experts)
    path = exported(folder, tmp_path / "model.gguf")
    reference = as_ggml_computes(model) if tiny.as_ggml else model
    assert_equal_logits(llama_logits(path, ids), torch_logits(reference, ids), tiny.tolerance)
    assert_equal_types(folder, path)


def test_every_architecture_has_a_line() -> None:
    tested = {tiny.family + tiny.head for tiny in (*MODELS, *EMBEDDERS, *RANKERS)}
    assert tested == set(families()) - OTHER_SPELLINGS - RELABELLED


def test_a_gemma_3n_with_eyes_has_the_tensors_of_its_text_part(books: Path, tmp_path: Path) -> None:
    """transformers cannot make one without timm, so the text part is put under the names that a whole one has."""
    folder = write_checkpoint(random_model(named("gemma-3n")), tmp_path / "model", books)
    text = {name: rows.shape for name, rows in open_model(folder).tensors.items()}
    rewrite_tensors(
        folder,
        lambda tensors: {
            **{name.replace("model.", "model.language_model.", 1): each for name, each in tensors.items()},
            "model.vision_tower.timm_model.conv.weight": torch.zeros(1),
        },
    )
    config = json.loads((folder / "config.json").read_text())
    whole = {"architectures": ["Gemma3nForConditionalGeneration"], "text_config": config}
    (folder / "config.json").write_text(json.dumps(whole))
    assert {name: rows.shape for name, rows in open_model(folder).tensors.items()} == text


def llama_embedding(path: Path, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    with LoadedModel(path, RuntimeOptions(n_ctx=256, embeddings=True, flash_attention="off", threads=1)) as model:
        return model.embed(ids.tolist())


def cosine(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


def named(name: str) -> TinyModel:
    return next(tiny for tiny in (*MODELS, *EMBEDDERS) if tiny.name == name)


def rewrite_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = folder / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path)


def with_prediction_layer(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """GLM-4.5 and later and DeepSeek 3 as published: one layer more, with its own embedding and head."""
    last = {name: tensor for name, tensor in tensors.items() if name.startswith("model.layers.2.")}
    more = {name.replace("layers.2", "layers.3"): tensor.clone() for name, tensor in last.items()}
    layer, embedding = "model.layers.3.", tensors["model.embed_tokens.weight"]
    more |= {f"{layer}{name}.weight": torch.randn(64) for name in ("enorm", "hnorm", "shared_head.norm")}
    more |= {f"{layer}{name}.weight": embedding.clone() for name in ("embed_tokens", "shared_head.head")}
    return tensors | more | {f"{layer}eh_proj.weight": torch.randn(64, 128)}


@pytest.mark.parametrize("name", ["glm-4-moe", "deepseek-3", "glm-4.7-flash"])
def test_layers_of_prediction_are_taken_over_and_change_nothing(name: str, books: Path, tmp_path: Path) -> None:
    tiny = named(name)
    model, ids = random_model(tiny), token_ids()
    folder = write_checkpoint(model, tmp_path / "model", books)
    plain = set(open_model(folder).tensors)
    rewrite_tensors(folder, with_prediction_layer)
    path = exported(folder, tmp_path / "model.gguf")
    assert "blk.3.nextn.eh_proj.weight" in set(open_model(folder).tensors) - plain
    assert_equal_logits(llama_logits(path, ids), torch_logits(model, ids), tiny.tolerance)
    assert_equal_types(folder, path)


def test_a_gpt_2_saved_without_its_head_is_the_same_file(books: Path, tmp_path: Path) -> None:
    folder = write_checkpoint(random_model(named("gpt-2")), tmp_path / "model", books)
    expected = exported(folder, tmp_path / "whole.gguf").read_bytes()
    rewrite_tensors(folder, lambda tensors: {key.removeprefix("transformer."): each for key, each in tensors.items()})
    assert exported(folder, tmp_path / "bare.gguf").read_bytes() == expected


def test_a_bert_with_names_of_old_is_the_same_file(books: Path, tmp_path: Path) -> None:
    folder = write_checkpoint(random_model(named("bert")), tmp_path / "model", books)
    expected = exported(folder, tmp_path / "new.gguf").read_bytes()

    def old(name: str) -> str:
        return f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    rewrite_tensors(folder, lambda tensors: {old(name): tensor for name, tensor in tensors.items()})
    assert exported(folder, tmp_path / "old.gguf").read_bytes() == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, 2),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, 1),
        ({"pooling_mode_max_tokens": True}, None),
    ],
)
def test_pooling_of_sentence_transformers_is_taken_over(
    settings: dict[str, bool], expected: int | None, books: Path, tmp_path: Path
) -> None:
    model, ids = random_model(named("bert")), token_ids()
    folder = write_checkpoint(model, tmp_path / "model", books)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps(settings))
    if expected is None:
        with pytest.raises(UnsupportedModelError, match="pooling is max_tokens"):
            open_model(folder)
        return
    assert open_model(folder).metadata["bert.pooling_type"].value == expected
    with torch.no_grad():
        hidden = model(torch.tensor(ids)[None]).last_hidden_state[0].numpy()
    pooled = hidden[0] if expected == 2 else hidden.mean(0)
    assert cosine(llama_embedding(exported(folder, tmp_path / "model.gguf"), ids), pooled) >= 0.9999


def test_rows_of_sliced_experts_are_those_of_the_whole_however_they_are_read() -> None:
    whole = np.arange(5 * 6 * 3, dtype=np.float32).reshape(5, 6, 3)
    rows = SlicedExperts(ArrayRows(whole), 2, 5)
    expected = whole[:, 2:5].reshape(-1, 3)
    assert rows.shape == (5, 3, 3)
    for start in range(15):
        for stop in range(start + 1, 16):
            assert np.array_equal(rows.read(start, stop), expected[start:stop])


def limits_of(folder: Path) -> list[str]:
    """Notes that are not about the bundled tokenizer, which is none of these models' own."""
    return [
        note
        for note in open_model(folder).notes
        if not note.startswith(("tokenizer:", "special tokens:", "stop tokens:"))
    ]


def test_what_a_file_lacks_is_noted(books: Path, tmp_path: Path) -> None:
    windowed = write_checkpoint(random_model(named("mistral-in-its-window")), tmp_path / "window", books)
    assert open_model(windowed).metadata["llama.context_length"].value == 64
    [window] = limits_of(windowed)
    assert window.startswith("context: 64 tokens instead of 256")
    eyes = write_checkpoint(random_model(named("gemma-3-of-multimodal")), tmp_path / "eyes", books)
    [left_out] = limits_of(eyes)
    assert re.match(r"[1-9]\d* tensors of other modalities are left out", left_out)
    plain = write_checkpoint(random_model(named("qwen-2")), tmp_path / "plain", books)
    assert limits_of(plain) == []
