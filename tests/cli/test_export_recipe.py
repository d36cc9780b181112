"""`edgepack export --recipe` and `--pass` on the bundled model: the file, its metadata, what lies beside it."""

from __future__ import annotations

import importlib
import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgepack.cli import execute as run
from edgepack.edge.fidelity.scorers.gguf import GGUFScorer
from edgepack.edge.fidelity.scorers.scorer import Chunking
from edgepack.edge.fidelity.validate import validate
from edgepack.export.checkpoint import open_checkpoint
from edgepack.export.gguf_file import write_gguf
from edgepack.export.recipe.corrections import write_correction, write_factors_apart
from edgepack.export.recipe.passes import prepare_export
from edgepack.export.recipe.values import PreparedExport, RecipeOptions
from edgepack.gguf.reader import read_header
from edgepack.quant.codecs.ggml.codec import dequantize_rows
from edgepack.quant.passes.recipe import inline_recipe
from edgepack.quant.types.targets import find_target

if TYPE_CHECKING:
    from numpy.typing import NDArray

BOOKS = Path(__file__).resolve().parent.parent / "data" / "books-llama-6m"
SMALL = {"sequences": 3, "length": 32}
TEXT = "The captain looked over the grey water, and said nothing of what he had seen in the night. " * 120


def prepared(passes: list[str], target: str, folder: Path) -> PreparedExport:
    recipe = inline_recipe(passes, SMALL)
    return prepare_export(open_checkpoint(BOOKS), recipe, find_target(target), RecipeOptions(folder))


def weights_of(path: Path, name: str) -> NDArray[np.float32]:
    header = read_header(path)
    info = header.tensor(name)
    raw = path.read_bytes()[header.data_start + info.offset :][: info.nbytes]
    return dequantize_rows(info.type, raw, info.rows, info.shape[-1])


def divergence(reference: Path, candidate: Path, *adapters: Path) -> float:
    with (
        closing(GGUFScorer(reference, 64, threads=1)) as original,
        closing(GGUFScorer(candidate, 64, threads=1, adapters=adapters)) as other,
    ):
        return float(validate(original, [other], TEXT, Chunking(64, max_chunks=4))[0].statistics.divergence.mean)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "f16.gguf"
    assert run(["export", str(BOOKS), "--target", "gguf-f16", "-o", str(path)]) == 0
    return path


def test_a_recipe_changes_the_file_and_is_told_in_its_metadata(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        "[calibration]\nsequences = 2\nlength = 32\nimportance = false\n"
        '[[pass]]\nname = "prune"\nmethod = "magnitude"\nsparsity = 0.5\n'
    )
    out = tmp_path / "m.gguf"
    arguments = ["export", str(BOOKS), "--target", "q8_0", "--recipe", str(recipe), "-o", str(out), "--json"]
    assert run(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["bytes"] == out.stat().st_size
    assert result["passes"][0]["sparsity"] == 0.5
    header = read_header(out)
    assert header.get("edgepack.recipe") == recipe.read_text().strip()
    assert header.get("edgepack.pass.0.name") == "prune"
    assert header.get("edgepack.pass.0.zeros") == result["passes"][0]["zeros"]
    assert np.mean(weights_of(out, "blk.2.ffn_up.weight") == 0) >= 0.49


def test_inline_passes_pack_into_one_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "m.edgepack"
    passes = ["--pass", "lowrank:method=svd,rank=4,output=adapter", "--pack", "--threads", "1"]
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    code = run(["export", str(BOOKS), "--target", "q4_0", *passes, "--calibration", str(text), "-o", str(out)])
    assert code == 0, capsys.readouterr().err
    assert run(["inspect", str(out), "--json"]) == 0
    members = json.loads(capsys.readouterr().out)["members"]
    assert [Path(member["name"]).suffix for member in members] == [".gguf", ".gguf", ".json"]
    assert "lora" in members[1]["name"]


def test_the_file_holds_exactly_the_weights_that_gptq_chose(tmp_path: Path) -> None:
    made = prepared(["gptq"], "q3_k_m", tmp_path)
    path = tmp_path / "m.gguf"
    write_gguf(made.plan, path, threads=1)
    by_name = {tensor.info.name: tensor for tensor in made.plan.tensors}
    for name in ("blk.0.attn_q.weight", "blk.3.ffn_down.weight", "blk.5.attn_v.weight"):
        chosen = by_name[name].rows.read(0, by_name[name].info.rows)
        np.testing.assert_array_equal(weights_of(path, name), chosen)


@pytest.mark.slow
def test_a_correction_brings_the_file_nearer_to_its_original(tmp_path: Path, original: Path) -> None:
    made = prepared(["lowrank:method=correction,rank=24"], "q2_k", tmp_path)
    path, adapter = tmp_path / "m.gguf", tmp_path / "m-lora.gguf"
    write_gguf(made.plan, path, threads=1)
    size, rank = write_correction(made, made.corrections[0], path, adapter)
    assert rank == 24
    assert size == adapter.stat().st_size
    assert divergence(original, path, adapter) < 0.8 * divergence(original, path)


def test_a_corrections_size_is_kept_and_used(tmp_path: Path) -> None:
    made = prepared(["lowrank:method=correction,size=300kB,covariance=diagonal"], "q3_k_s", tmp_path)
    path, adapter = tmp_path / "m.gguf", tmp_path / "m-lora.gguf"
    write_gguf(made.plan, path, threads=1)
    size, rank = write_correction(made, made.corrections[0], path, adapter)
    per_rank = size / rank
    assert 300_000 - per_rank < size <= 300_000


@pytest.mark.slow
def test_factors_apart_give_the_model_that_they_give_together(tmp_path: Path) -> None:
    together = prepared(["lowrank:method=svd,rank=16"], "f32", tmp_path / "1")
    apart = prepared(["lowrank:method=svd,rank=16,output=adapter"], "f32", tmp_path / "2")
    whole, base, adapter = tmp_path / "whole.gguf", tmp_path / "base.gguf", tmp_path / "lora.gguf"
    write_gguf(together.plan, whole, threads=1)
    write_gguf(apart.plan, base, threads=1)
    write_factors_apart(apart, adapter)
    assert divergence(whole, base, adapter) < 1e-3
    assert divergence(whole, base) > 1


BAD: list[tuple[list[str], int, str]] = [
    (["--pass", "prune:sparsity=2"], 2, "pass[0].sparsity: expected 0 to 1"),
    (["--pass", "gptq", "--pass", "awq"], 2, "pass[1]: 'awq' comes after pass[0] 'gptq'"),
    (["--pass", "awq", "--imatrix", "x"], 2, "passes change what enters the layers"),
    (["--pass", "awq", "--max-size", "3MB"], 2, "--max-size: gguf-q4km makes 3.78 MB, more than 3 MB"),
    (["--recipe", "absent.toml"], 2, "absent.toml: cannot be read"),
    (["--pass", "lowrank:method=correction,size=10", "--target", "q4_0"], 2, "for rank 1, got 10 B"),
]


@pytest.mark.parametrize(("options", "code", "message"), BAD)
def test_what_cannot_be_done_is_one_line_and_an_exit_code(
    options: list[str], code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setitem(
        importlib.import_module("edgepack.quant.passes.recipe").CALIBRATION, "sequences", small_default()
    )
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    out = tmp_path / "m.gguf"
    target = [] if "--target" in options else ["--target", "q4_k_m"]
    assert run(["export", str(BOOKS), *target, *options, "--calibration", str(text), "-o", str(out)]) == code
    assert message in capsys.readouterr().err


def small_default() -> Any:
    from edgepack.quant.passes.recipe import Setting

    return Setting("whole", low=1, high=9, default=2)


def test_a_text_that_is_too_short_says_how_much_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "short.txt"
    text.write_text("Too short.")
    out = tmp_path / "m.gguf"
    options = ["--target", "q4_0", "--pass", "awq", "--calibration", str(text), "-o", str(out)]
    assert run(["export", str(BOOKS), *options]) == 12
    assert "needs at least 511" in capsys.readouterr().err
    assert not out.exists()


def test_a_dry_run_prints_the_plan_and_runs_no_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "m.gguf"
    assert run(["export", str(BOOKS), "--target", "q4_0", "--pass", "awq", "--dry-run", "-o", str(out)]) == 0
    assert "blk.0.attn_q.weight" in capsys.readouterr().out
    assert not out.exists()


def test_smoothing_by_the_command_line_is_told_in_the_file(tmp_path: Path) -> None:
    text, recipe, out = tmp_path / "text.txt", tmp_path / "recipe.toml", tmp_path / "m.gguf"
    text.write_text(TEXT)
    calibration = f'[calibration]\ntext = "{text}"\nsequences = 2\nlength = 32\n'
    recipe.write_text(f'{calibration}[[pass]]\nname = "smooth"\ntokens = 64\nsteps = 5\n')
    assert run(["export", str(BOOKS), "--target", "q8_0", "--recipe", str(recipe), "-o", str(out)]) == 0
    metadata = read_header(out).metadata
    assert metadata["edgepack.pass.0.name"].value == "smooth"
    assert metadata["edgepack.pass.0.folds"].value > 0
    before, after = (metadata[f"edgepack.pass.0.predicted_{when}"].value for when in ("before", "after"))
    assert after < before
