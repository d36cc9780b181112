"""Every tensor's type and bytes equal those that llama.cpp's own quantiser makes from our f32 file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from references.hybrid_models import HYBRIDS
from references.llama_quantize import llama_quantize, tensors_of
from references.tiny_checkpoints import random_model, write_checkpoint
from references.tiny_decoders import DECODERS
from references.tiny_encoders import EMBEDDERS, RANKERS

from edgepack.errors import UsageError
from edgepack.export.gguf_file import write_gguf
from edgepack.export.mapped_model import open_model
from edgepack.export.plan import PlanOptions, plan_export
from edgepack.quant.types.targets import TARGETS, Target, find_target

if TYPE_CHECKING:
    from pathlib import Path


NEEDS_IMPORTANCE = {"IQ3_XS", "IQ3_XXS", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "Q2_K_S"}
PLAIN = [target for target in TARGETS if target.label not in NEEDS_IMPORTANCE]


def assert_equal_to_llama_quantize(model: Path, target: Target, folder: Path) -> None:
    mapped = open_model(model)
    ours, f32, theirs = folder / "ours.gguf", folder / "f32.gguf", folder / "theirs.gguf"
    write_gguf(plan_export(mapped, find_target("f32")), f32)
    assert llama_quantize(f32, theirs, target.file_type)
    write_gguf(plan_export(mapped, target, PlanOptions(quantizer="ggml")), ours)
    expected, got = tensors_of(theirs), tensors_of(ours)
    assert {name: kind for name, (kind, _) in got.items()} == {name: kind for name, (kind, _) in expected.items()}
    assert [name for name in expected if got[name] != expected[name]] == []
    assert list(got) == list(expected)


@pytest.mark.parametrize("target", PLAIN, ids=lambda target: target.label)
def test_books_equal_llama_quantize(target: Target, books: Path, tmp_path: Path) -> None:
    assert_equal_to_llama_quantize(books, target, tmp_path)


@pytest.mark.parametrize("target", PLAIN, ids=lambda target: target.label)
def test_fall_backs_of_stories_equal_llama_quantize(target: Target, stories: Path, tmp_path: Path) -> None:
    if target.label == "Q1_0":  # llama.cpp defines no fall-back and fails too
        with pytest.raises(UsageError, match="Q1_0 needs rows of a multiple of 128, got 64"):
            plan_export(open_model(stories), target)
        return
    assert_equal_to_llama_quantize(stories, target, tmp_path)


# One of each kind of graph: with delta nets, per-layer embeddings, short convolutions, mixers, experts, sinks, latent
# attention, joined matrices, encoders.
FAMILIES = (
    "qwen-3.5-moe", "qwen-3-next", "gemma-4-e2b", "gemma-4-26b", "lfm-2-moe", "granite-4-hybrid-moe", "gpt-oss",
    "mamba", "mamba-2", "falcon-h1", "nemotron-3-latent", "jamba",
    "qwen-3-vl-moe", "deepseek-2-lite", "deepseek-3", "glm-4.7-flash", "hunyuan-moe", "llama-4", "minicpm-3",
    "falcon-40b", "modern-bert-ranker", "nomic-bert", "jina-3",
)  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_families_equal_llama_quantize(name: str, books: Path, tmp_path: Path) -> None:
    tiny = next(each for each in (*HYBRIDS, *DECODERS, *EMBEDDERS, *RANKERS) if each.name == name)
    model = write_checkpoint(random_model(tiny), tmp_path / "model", books)
    for label in ("Q4_K_M", "Q8_0"):
        folder = tmp_path / label
        folder.mkdir()
        assert_equal_to_llama_quantize(model, find_target(label), folder)
