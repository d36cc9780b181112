"""Each family, exported to f32 and run by llama.cpp, gives the logits that transformers computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from edgepack.edge.runtime import LoadedModel
from edgepack.edge.runtime_options import RuntimeOptions
from edgepack.export.gguf_file import write_gguf
from edgepack.export.mapped_model import open_model
from edgepack.export.plan import plan_export
from edgepack.quant.targets import find_target
from references.tiny_checkpoints import VOCABULARY, TinyModel, random_model, write_checkpoint

if TYPE_CHECKING:
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
    TinyModel("mixtral", "Mixtral", {"num_local_experts": 8}),
    TinyModel("mixtral-fused", "Mixtral", {"num_local_experts": 4}, fused_experts=True),
    TinyModel("qwen-2", "Qwen2"),
    TinyModel("qwen-2-yarn", "Qwen2", {"rope_parameters": YARN, "tie_word_embeddings": True}),
    TinyModel("qwen-2-moe", "Qwen2Moe", EXPERTS | {"shared_expert_intermediate_size": 80}),
    TinyModel("qwen-2-moe-tied-and-fused", "Qwen2Moe", EXPERTS | {"tie_word_embeddings": True}, fused_experts=True),
    TinyModel("qwen-3", "Qwen3", {"head_dim": 32}),
    TinyModel("qwen-3-moe", "Qwen3Moe", EXPERTS | {"head_dim": 32, "norm_topk_prob": True}),
    TinyModel("qwen-3-moe-fused", "Qwen3Moe", EXPERTS | {"norm_topk_prob": True}, fused_experts=True),
)


def token_ids(count: int = 48) -> NDArray[np.int64]:
    return np.random.default_rng(1).integers(3, VOCABULARY, count)


def exported(folder: Path, out: Path) -> Path:
    write_gguf(plan_export(open_model(folder), find_target("f32")), out)
    return out


def llama_logits(path: Path, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    options = RuntimeOptions(n_ctx=256, kv_type_k="f32", kv_type_v="f32", flash_attention="off", threads=1)
    with LoadedModel(path, options) as model:
        return model.logits(ids)


def torch_logits(model: Any, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    with torch.no_grad():
        logits: NDArray[np.float32] = model(torch.tensor(ids)[None]).logits[0].numpy()
    return logits


def assert_equal_logits(got: NDArray[np.float32], expected: NDArray[np.float32], tolerance: float) -> None:
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= tolerance * expected.std()
    assert np.array_equal(got.argmax(1), expected.argmax(1))


@pytest.mark.parametrize("tiny", MODELS, ids=lambda tiny: tiny.name)
def test_logits_equal_those_of_transformers(tiny: TinyModel, books: Path, tmp_path: Path) -> None:
    model, ids = random_model(tiny), token_ids()
    folder = write_checkpoint(model, tmp_path / "model", books, fused_experts=tiny.fused_experts)
    got = llama_logits(exported(folder, tmp_path / "model.gguf"), ids)
    assert_equal_logits(got, torch_logits(model, ids), tiny.tolerance)
