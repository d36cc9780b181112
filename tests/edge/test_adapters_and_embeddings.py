"""An adapter is what merging it would give; embeddings are what the model computes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from lora_adapters import write_adapter, write_merged
from tiny_models import Shape, write_random

from edgepack.cli import execute as run
from edgepack.edge.llama.options import Adapter, RuntimeOptions
from edgepack.edge.llama.runtime import LoadedModel
from edgepack.errors import ModelRuntimeError, UsageError
from edgepack.packaging.pack import pack_archive

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("blk.0.attn_q.weight", "blk.0.ffn_up.weight", "blk.1.ffn_down.weight")
IDS = [1, 40, 50, 60, 70]


def logits(path: Path, *adapters: Adapter) -> np.ndarray:
    options = RuntimeOptions(threads=1, flash_attention="off", kv_type_k="f32", kv_type_v="f32", adapters=adapters)
    with LoadedModel(path, options) as model:
        return model.logits(IDS)


@pytest.fixture(scope="module")
def adapter(tiny: Path, models: Path) -> Path:
    return write_adapter(models / "adapter.gguf", tiny, NAMES)


@pytest.mark.parametrize("scale", [1.0, 0.5, -1.0])
def test_an_adapter_equals_the_merged_model(tiny: Path, models: Path, adapter: Path, scale: float) -> None:
    merged = write_merged(models / f"merged{scale}.gguf", tiny, NAMES, scale=scale)
    applied = logits(tiny, Adapter(adapter, scale))
    np.testing.assert_allclose(applied, logits(merged), atol=1e-3)
    assert np.abs(applied - logits(tiny)).max() > 0.1


def test_two_adapters_add_up(tiny: Path, models: Path, adapter: Path) -> None:
    merged = write_merged(models / "twice.gguf", tiny, NAMES, scale=1.5)
    np.testing.assert_allclose(logits(tiny, Adapter(adapter), Adapter(adapter, 0.5)), logits(merged), atol=1e-3)


def test_adapters_of_an_archive_are_applied_unless_left_out(
    tiny: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    archive = pack_archive(tiny, tmp_path / "both.edgepack", include=(adapter,), threads=1).output
    arguments = ["--prompt", "hello", "--temperature", "0", "--max-tokens", "8", "--threads", "1", "--json"]

    def text(*more: str) -> str:
        assert run(["run", *more, *arguments]) == 0
        return str(json.loads(capfd.readouterr().out)["text"])

    plain, adapted = text(str(tiny)), text(str(tiny), "--adapter", str(adapter))
    assert plain != adapted
    assert text(str(archive)) == adapted
    assert text(str(archive), "--no-adapters") == plain
    assert text(str(tiny), "--adapter", f"{adapter}:0") == plain


def test_what_is_not_an_adapter_is_refused(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    assert run(["run", str(tiny), "--prompt", "x", "--adapter", str(tiny)]) == 2
    assert run(["run", str(tiny), "--prompt", "x", "--adapter", "absent.gguf"]) == 2
    assert run(["run", str(tiny), "--prompt", "x", "--adapter", "absent.gguf:high"]) == 2
    with pytest.raises(ModelRuntimeError, match="refuses the adapter"):
        LoadedModel(tiny, RuntimeOptions(threads=1, adapters=(Adapter(tiny),)))


def test_an_adapter_that_llama_cpp_would_abort_on_is_refused(models: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Where the embedding is also the output matrix, llama.cpp 0.5.0 dies of an adapter that changes it."""
    tied = write_random(models / "tied.gguf", Shape(tied=True))
    adapter = write_adapter(models / "embedding.gguf", tied, ("token_embd.weight",))
    assert run(["run", str(tied), "--prompt", "x", "--adapter", str(adapter)]) == 4
    assert "also the output matrix" in capfd.readouterr().err


def test_an_embedding_is_the_mean_of_the_tokens_where_the_model_has_no_pooling(tiny: Path) -> None:
    from llama_cpp import Llama

    with LoadedModel(tiny, RuntimeOptions(threads=1, embeddings=True)) as model:
        ids = model.tokenize("hello world")
        ours = model.embed(ids)
        assert ours.shape == (model.n_embd,)
        np.testing.assert_array_equal(model.embed(ids), ours)
    options = RuntimeOptions(threads=1, embeddings=True, n_ubatch=64)
    with LoadedModel(tiny, options) as model, pytest.raises(UsageError, match="at most n_ubatch = 64"):
        model.embed([5] * 65)
    bare = Llama(str(tiny), embedding=True, n_threads=1, n_ctx=512, verbose=True)
    theirs = np.array(bare.embed("hello world"))
    bare.close()
    np.testing.assert_allclose(ours, theirs.mean(axis=0), atol=2e-2)


def test_a_model_opened_for_text_refuses_embeddings(tiny: Path) -> None:
    with LoadedModel(tiny, RuntimeOptions(threads=1)) as model, pytest.raises(UsageError, match="without them"):
        model.embed([1, 2])


def test_embed_prints_one_array_a_text(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["embed", str(tiny), "one", "two", "--threads", "1"]) == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert run(["embed", str(tiny), "one", "two", "--threads", "1", "--json", "--normalize"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert (result["dimensions"], result["texts"]) == (64, ["one", "two"])
    for raw, scaled in zip(lines, result["embeddings"], strict=True):
        np.testing.assert_allclose(np.linalg.norm(scaled), 1, rtol=1e-5)
        np.testing.assert_allclose(np.array(raw) / np.linalg.norm(raw), scaled, rtol=1e-4, atol=1e-6)


def test_unpacking_brings_the_adapter_along_under_the_outputs_name(
    tiny: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = tmp_path / f"{tiny.stem}-lora.gguf"
    named.write_bytes(adapter.read_bytes())
    pack_archive(tiny, tmp_path / "a.edgepack", include=[named])
    assert run(["unpack", str(tmp_path / "a.edgepack"), "-o", str(tmp_path / "x.gguf"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["beside"] == [str(tmp_path / "x-lora.gguf")]
    np.testing.assert_array_equal(
        logits(tmp_path / "x.gguf", Adapter(tmp_path / "x-lora.gguf")), logits(tiny, Adapter(adapter))
    )
