"""Predicted memory of models with recurrent states, shared caches and per-layer embeddings is llama.cpp's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fit_truth import MIB, measure
from references.hybrid_models import HYBRIDS
from references.tiny_checkpoints import TinyModel, random_model, write_checkpoint

from edgepack.edge.fit.memory import MemoryRequest
from edgepack.export.gguf_file import write_gguf
from edgepack.export.mapped_model import open_model
from edgepack.export.plan import plan_export
from edgepack.quant.types.targets import find_target

if TYPE_CHECKING:
    from pathlib import Path

NAMES = (
    "qwen-3-next", "qwen-3.5", "gemma-3n", "gemma-4-e2b", "gemma-4-31b", "lfm-2", "lfm-2-moe", "granite-moe-shared",
    "granite-4-hybrid-moe", "gpt-oss", "mamba", "mamba-2", "falcon-h1", "nemotron-h", "nemotron-3", "jamba",
    "glm-4", "glm-4-moe",
)  # fmt: skip
GLMS = (
    TinyModel("glm-4", "Glm4", {"head_dim": 32, "attention_bias": True}),
    TinyModel("glm-4-moe", "Glm4Moe", {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}),
)
REQUESTS = (MemoryRequest(256), MemoryRequest(2048, n_ubatch=256, kv_type_k="bf16", kv_type_v="bf16"))


@pytest.mark.parametrize("name", NAMES)
def test_llama_cpp_reports_what_is_predicted(name: str, books: Path, tmp_path: Path) -> None:
    tiny = next(each for each in (*HYBRIDS, *GLMS) if each.name == name)
    folder = write_checkpoint(random_model(tiny), tmp_path / "model", books)
    path = tmp_path / "model.gguf"
    write_gguf(plan_export(open_model(folder), find_target("q8")), path)
    for request in REQUESTS:
        row = measure(name, path, request, simulated=False)
        assert row.worst[1] < 0.05, (row, MIB)
