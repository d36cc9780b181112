"""`export` with passes and a goal: sizes are met, gates choose, verdicts are told, contradictions are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from references.tiny_checkpoints import TinyModel, random_model, write_checkpoint

from edgepack.cli import execute as run
from edgepack.export.checkpoint import open_checkpoint
from edgepack.export.mapped_model import open_model
from edgepack.export.recipe import work as pipeline_passes
from edgepack.export.recipe.passes import Passes, prepare_export
from edgepack.export.recipe.values import RecipeOptions
from edgepack.gguf.reader import read_header
from edgepack.pipeline.makers.gguf import ladder
from edgepack.quant.passes.recipe import inline_recipe
from edgepack.quant.passes.registry import find_pass
from edgepack.quant.types.targets import find_target

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.quant.passes.registry import PassDeclaration

TEXT = "The captain looked over the grey water, and said nothing of what he had seen in the night. " * 120
RECIPE = '[calibration]\nsequences = 2\nlength = 32\nimportance = false\n[[pass]]\nname = "prune"\nsparsity = 0.3\n'
CORRECTION = '[[pass]]\nname = "lowrank"\nmethod = "correction"\nrank = 32\n'


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, books: Path) -> Path:
    """A Llama of 0.6 M random parameters with the bundled tokenizer."""
    folder = tmp_path_factory.mktemp("tiny") / "tiny-llama"
    return write_checkpoint(random_model(TinyModel("llama", "Llama")), folder, books)


@pytest.fixture
def export(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """(recipe, options) → (exit code, what was printed as JSON or None, the last line of stderr)."""
    text = tmp_path / "text.txt"
    text.write_text(TEXT)

    def call(recipe: str, *options: object) -> tuple[int, Any, str]:
        path = tmp_path / "recipe.toml"
        path.write_text(recipe)
        arguments = ["--recipe", path, "--calibration", text, "--text", text, "--chunks", 4, "--json"]
        code = run(["export", str(model), *map(str, arguments), *map(str, options)])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else None, err.strip().splitlines()[-1] if err.strip() else ""

    return call


def outputs(folder: Path) -> set[str]:
    """Names in the folder that the export has added."""
    return {path.name for path in folder.iterdir()} - {"text.txt", "recipe.toml"}


def sizes(model: Path, folder: Path) -> dict[str, int]:
    """Bytes of every type before passes have left their figures in the metadata."""
    passes = Passes(open_checkpoint(model), inline_recipe([], {"importance": False}), RecipeOptions(folder))
    return {target.name: passes.outline(target).total_bytes for target in ladder(open_model(model))}


def test_the_largest_type_that_fits_after_the_passes_is_written(export: Any, model: Path, tmp_path: Path) -> None:
    plain = sizes(model, tmp_path)
    limit = plain["gguf-q8"] - 1
    code, result, _ = export(RECIPE, "--max-size", limit, "-o", tmp_path / "m.gguf")
    assert code == 0
    assert (tmp_path / "m.gguf").stat().st_size == result["bytes"] <= limit
    assert result["target"] == max((n for n in plain if plain[n] < limit - 1500), key=lambda name: plain[name])
    assert read_header(tmp_path / "m.gguf").get("edgepack.pass.0.name") == "prune"
    assert outputs(tmp_path) == {"m.gguf"}


def test_a_size_counts_the_correction_beside_the_file(export: Any, model: Path, tmp_path: Path) -> None:
    limit = sizes(model, tmp_path)["gguf-q8"] + 4000
    correction = CORRECTION.replace("32", "2")
    code, result, _ = export(RECIPE + correction, "--max-size", limit, "-o", tmp_path / "m.gguf")
    assert code == 0
    (adapter,) = result["adapters"]
    assert result["bytes"] + adapter["bytes"] <= limit
    assert result["target"] != "gguf-q8"  # which fits alone
    assert outputs(tmp_path) == {"m.gguf", "m-correction-lora.gguf"}


def test_a_size_means_the_archive_with_pack(export: Any, model: Path, tmp_path: Path) -> None:
    limit = sizes(model, tmp_path)["gguf-q8"]
    out, correction = tmp_path / "m.edgepack", CORRECTION.replace("32", "2")
    code, result, _ = export(RECIPE + correction, "--max-size", limit, "--pack", "-o", out)
    assert code == 0
    assert out.stat().st_size == result["bytes"] <= limit
    assert outputs(tmp_path) == {"m.edgepack"}


def test_the_smallest_type_that_clears_the_gate_is_kept_with_its_adapter(export: Any, tmp_path: Path) -> None:
    code, plain, _ = export(RECIPE, "--target", "q4_k_m", "--validate", "-o", tmp_path / "plain.gguf")
    assert code == 0
    bar = plain["validation"]["mean_kl"]
    code, result, _ = export(RECIPE + CORRECTION, "--max-kl", bar, "-o", tmp_path / "m.gguf")
    assert code == 0
    assert [rung["passed"] for rung in result["tried"]] == [False] * (len(result["tried"]) - 1) + [True]
    assert result["tried"][-1]["mean_kl"] <= bar
    assert result["tried"][-1]["bytes"] == result["bytes"] + result["adapters"][0]["bytes"]
    assert result["tried"][-1]["target"] == result["target"]
    assert outputs(tmp_path) == {"plain.gguf", "m.gguf", "m-correction-lora.gguf"}


def test_the_verdict_is_on_the_file_with_its_adapter_and_a_missed_gate_keeps_it(export: Any, tmp_path: Path) -> None:
    recipe = RECIPE.replace("0.3", "0.0")
    _, plain, _ = export(recipe, "--target", "q4_0", "--validate", "-o", tmp_path / "plain.gguf")
    code, corrected, told = export(
        recipe + CORRECTION, "--target", "q4_0", "--min-agreement", "1", "-o", tmp_path / "m.gguf"
    )
    assert code == 1
    assert "FAILED min-agreement" in told or corrected["validation"]["passed"] is False
    assert corrected["validation"]["mean_kl"] < 0.8 * plain["validation"]["mean_kl"]
    packed = tmp_path / "m.edgepack"
    _, archived, _ = export(recipe + CORRECTION, "--target", "q4_0", "--validate", "--pack", "-o", packed)
    assert archived["validation"]["mean_kl"] == pytest.approx(corrected["validation"]["mean_kl"])
    assert outputs(tmp_path) == {"plain.gguf", "m.gguf", "m-correction-lora.gguf", "m.edgepack"}


def test_only_passes_that_depend_on_the_type_run_again_for_another(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def counted(name: str) -> PassDeclaration:
        declared = find_pass(name)

        def runner(checkpoint: Any, settings: Any, run: Any) -> Any:
            ran.append(name)
            return declared.run(checkpoint, settings, run)

        return replace(declared, run=runner)

    known = {name: counted(name) for name in ("prune", "awq", "gptq")}
    monkeypatch.setattr(pipeline_passes, "find_pass", known.__getitem__)
    recipe = inline_recipe(["prune:sparsity=0.3", "awq:clip=false", "gptq"], {"sequences": 2, "length": 16})
    passes = Passes(open_checkpoint(model), recipe, RecipeOptions(tmp_path))
    first, second = (passes.prepare(find_target(target)) for target in ("q4_0", "q8_0"))
    alone = prepare_export(open_checkpoint(model), recipe, find_target("q8_0"), RecipeOptions(tmp_path / "alone"))
    assert ran == ["prune", "awq", "gptq", "awq", "gptq", "prune", "awq", "gptq"]
    assert [figures["name"] for figures in second.figures] == ["prune", "awq", "gptq"]
    assert first.plan.total_bytes < second.plan.total_bytes
    assert second.figures == alone.figures
    passes.forget(find_target("q4_0"))
    assert not (tmp_path / "gguf-q4_0").exists()


REFUSED: list[tuple[list[str], str]] = [
    (["--min-agreement", "0.9", "--max-size", "3MB"], "expected no --max-size or --shard-size"),
    (["--max-size", "100kB"], "--max-size 100 kB: the least possible is"),
    (["--max-size", "100kB", "--target", "q6k"], "--max-size: gguf-q6k makes"),
    (["--max-size", "400kB", "--target", "q8", "--pack"], "--max-size: the archive as gguf-q8 is larger than 400 kB"),
    ([], "export: expected --target, or --max-size to take the largest that fits"),
    (["--target", "q6k", "--pack", "--shard-size", "2MB"], "an archive is one file"),
    (["--target", "q6k", "--shard-size", "2MB"], "--shard-size: not together with --recipe or --pass"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_goals_that_contradict_each_other_are_refused_and_leave_nothing(
    options: list[str], message: str, export: Any, tmp_path: Path
) -> None:
    code, result, told = export(RECIPE, *options, "-o", tmp_path / "m.out")
    assert (code, result) == (2, None)
    assert message in told
    assert outputs(tmp_path) == set()


def test_a_dry_run_finds_the_type_for_a_size_without_a_pass(export: Any, model: Path, tmp_path: Path) -> None:
    plain = sizes(model, tmp_path)
    code, result, _ = export(RECIPE, "--max-size", plain["gguf-q5km"] + 400, "--dry-run", "-o", tmp_path / "m.gguf")
    assert code == 0
    assert result["target"] == "gguf-q5km"
    assert outputs(tmp_path) == set()


def test_a_text_that_gives_fewer_sequences_than_asked_for_is_told(export: Any, tmp_path: Path) -> None:
    recipe = RECIPE.replace("sequences = 2\nlength = 32", "sequences = 900\nlength = 128")
    code, result, _ = export(recipe, "--target", "q8_0", "-o", tmp_path / "m.gguf")
    assert code == 0
    (note,) = result["notes"]
    assert note.startswith("calibration text: gives ")
    assert note.endswith(" sequences of 128 tokens; 900 need 115200 tokens")


def test_passes_change_what_a_codec_of_the_variant_codes(
    export: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coded, native = tmp_path / "coded.gguf", tmp_path / "native.gguf"
    code, result, _ = export(RECIPE, "--target", "edge-nf4", "-o", coded)
    assert code == 0
    assert result["bytes"] == coded.stat().st_size
    metadata = read_header(coded).metadata
    assert 'name = "prune"' in metadata["edgepack.recipe"].value
    assert metadata["edgepack.pass.0.sparsity"].value == pytest.approx(0.3, abs=0.01)
    assert run(["unpack", str(coded), "--native", "--native-type", "q8_0", "-o", str(native)]) == 0
    capsys.readouterr()
    rows = open_model(native, allow_requantize=True).tensors["blk.0.ffn_up.weight"]
    assert (rows.read(0, rows.shape[0]) == 0).mean() >= 0.29


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        (RECIPE + '[[pass]]\nname = "gptq"\n', [], "pass 'gptq' rounds for or corrects ggml's types"),
        (RECIPE + CORRECTION, [], "pass 'lowrank' rounds for or corrects ggml's types"),
        (RECIPE, ["--dry-run"], "--calibration: collecting is work"),
    ],
)
def test_passes_that_no_codec_can_use_are_refused(
    recipe: str, options: list[str], message: str, export: Any, tmp_path: Path
) -> None:
    code, result, told = export(recipe, "--target", "edge-nf4", *options, "-o", tmp_path / "m.gguf")
    assert (code, result) == (2, None)
    assert message in told
    assert outputs(tmp_path) == set()
