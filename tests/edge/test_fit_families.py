"""Predicted memory of every family beyond those that are replayed is llama.cpp's own, as its log has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fit_truth import MIB, measure
from references.family_oracle import exported
from references.tiny_checkpoints import random_model, write_checkpoint
from references.tiny_decoders import DECODERS
from references.tiny_encoders import EMBEDDERS

from edgepack.edge.fit.memory import MemoryRequest

if TYPE_CHECKING:
    from pathlib import Path

NAMES = (
    "qwen-2-moe-wide", "ministral-3", "qwen-2.5-vl", "qwen-3-vl-moe", "deepseek-2-lite", "glm-4.7-flash", "olmo-3", "olmoe",
    "exaone-4", "hunyuan", "hunyuan-moe", "ernie-4.5", "ernie-4.5-moe", "cohere-2", "seed-oss", "phi-2", "stablelm-12b", "apertus",
    "arcee", "nemotron", "llama-4", "minicpm-3", "bitnet", "falcon-40b", "bert", "xlm-roberta", "embedding-gemma",
    "modern-bert", "nomic-bert", "jina-3",
)  # fmt: skip
REQUEST = MemoryRequest(512, n_ubatch=256)


@pytest.mark.parametrize("name", NAMES)
def test_llama_cpp_reports_what_is_predicted(name: str, books: Path, tmp_path: Path) -> None:
    tiny = next(each for each in (*DECODERS, *EMBEDDERS) if each.name == name)
    folder = write_checkpoint(random_model(tiny), tmp_path / "model", books)
    row = measure(name, exported(folder, tmp_path / "model.gguf"), REQUEST, simulated=False)
    assert row.worst[1] < 0.05, (row, MIB)
