"""Recovery and canon adapters from end to end on a small Llama: identity at 0 steps, resumed runs, packages, refusals."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from invented_canon import write_canon
from wire_models import varied_text, write_small_llama

import edgepack
from edgepack.cli import execute
from edgepack.edge.fidelity.scorers.gguf import GGUFScorer
from edgepack.edge.fidelity.scoring import ScoringOptions, open_candidate
from edgepack.edge.llama.check import check_adapter
from edgepack.errors import CalibrationError, NumericError, UsageError
from edgepack.gguf import keys
from edgepack.gguf.reader import read_header
from edgepack.packaging.archive import open_unjudged
from edgepack.pipeline.adapting import recover as recovering
from edgepack.pipeline.adapting.larger import Larger, verdict
from edgepack.pipeline.adapting.measuring import Measured, chunk_of
from edgepack.pipeline.adapting.settings import RecoverSettings, TeachSettings, auto_rate

if TYPE_CHECKING:
    from pathlib import Path

SMALL = {"batch": 2, "threads": 1, "rank": 4}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a Q4_0 file of it, text and documents."""
    folder = tmp_path_factory.mktemp("adapting")
    model = write_small_llama(folder / "model")
    edgepack.export(model, "gguf-q4_0", output=folder / "small.gguf")
    edgepack.export(model, "gguf-q8", output=folder / "q8.gguf")
    (folder / "text.txt").write_text(varied_text(2500))
    write_canon(folder / "canon", 8)
    return folder


def recovered(place: Path, output: Path, **options: Any) -> Any:
    settings = {**SMALL, "ctx": 32, "hardest": 6, "steps": 4, "rate": 5e-3, **options}
    return edgepack.recover(place / "small.gguf", place / "model", place / "text.txt", output, **settings)


def taught(place: Path, output: Path, **options: Any) -> Any:
    settings = {
        **SMALL, "ctx": 96, "ask": 8, "replay": 4, "steps": 4, "rate": 5e-3, "other": place / "text.txt", **options
    }  # fmt: skip
    return edgepack.teach(place / "small.gguf", place / "canon", output, **settings)


def logits(model: Path, *adapters: Path) -> Any:
    scorer = GGUFScorer(model, 64, threads=1, adapters=adapters)
    found = scorer.score(chunk_of(0, np.arange(1, 25), 0))
    scorer.close()
    return found


@pytest.fixture(scope="module")
def recovery(place: Path) -> Any:
    return recovered(place, place / "r.gguf")


def test_a_recovery_adapter_learns_the_hardest_examples_and_is_measured_on_others(place: Path, recovery: Any) -> None:
    found = recovery.recovered
    every, chosen = found.examples
    assert chosen == 6 < every
    assert found.learnt.steps == 4
    assert found.before.bytes == (place / "small.gguf").stat().st_size
    assert found.after.bytes == found.before.bytes + recovery.output.stat().st_size
    assert found.after.kl != found.before.kl
    assert found.before.reference_perplexity == found.after.reference_perplexity
    header = read_header(recovery.output)
    assert json.loads(str(header.get(keys.ADAPTER_ABOUT)))["hardest"] == 6
    assert not list(place.glob(".*")), "scratch is left"


def test_it_is_held_against_a_larger_type_and_the_json_says_which_wins(recovery: Any) -> None:
    told = recovery.json()
    assert told["larger"]["target"].startswith("gguf-q")
    assert told["wins"] is (told["after"]["mean_kl"] < told["larger"]["equal_bytes_kl"])
    assert told["kl_regained"] == pytest.approx(1 - told["after"]["mean_kl"] / told["before"]["mean_kl"])
    json.dumps(told, allow_nan=False)


def test_the_adapter_changes_its_own_file_and_is_refused_on_another_quantisation(place: Path, recovery: Any) -> None:
    own = place / "small.gguf"
    assert np.abs(logits(own, recovery.output) - logits(own)).max() > 1e-3
    other = place / "q8.gguf"
    with pytest.raises(edgepack.errors.AdapterError, match="another file"):
        check_adapter(recovery.output, read_header(other), other)
    options = ScoringOptions(ctx=32, threads=1, adapters=(recovery.output,))
    with pytest.raises(edgepack.errors.AdapterError, match="another file"):
        open_candidate(other, options)


def test_validate_runs_the_candidate_with_the_adapter_and_the_reference_without(
    place: Path, recovery: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    own = str(place / "small.gguf")
    line = ["validate", own, "--reference", own, "--text", str(place / "text.txt"), "--ctx", "32", "--chunks", "2"]
    found = []
    for more in ([], ["--adapter", str(recovery.output)]):
        assert execute([*line, "--threads", "1", "--json", *more]) == 0
        found.append(json.loads(capfd.readouterr().out)["mean_kl"])
    assert found[0] == 0 < found[1]
    assert execute([*line, "--adapter", str(place / "absent.gguf")]) == 2


def test_no_step_is_the_identity(place: Path, tmp_path: Path) -> None:
    found = recovered(place, tmp_path / "zero.gguf", steps=0)
    own = place / "small.gguf"
    np.testing.assert_array_equal(logits(own, found.output), logits(own))
    assert found.recovered.after.kl == found.recovered.before.kl


@pytest.mark.parametrize("targets", [{"targets": "text"}, {"answers": "pairs.jsonl"}])
def test_text_and_better_answers_are_learnt_too(place: Path, tmp_path: Path, targets: dict[str, str]) -> None:
    (tmp_path / "pairs.jsonl").write_text(
        "".join(json.dumps({"question": f"{n}?", "answer": f"it is {n} of them"}) + "\n" for n in range(9))
    )
    given = {key: tmp_path / value if key == "answers" else value for key, value in targets.items()}
    found = recovered(place, tmp_path / "t.gguf", steps=2, **given)
    assert found.recovered.learnt.steps == 2
    assert np.isfinite(found.recovered.after.kl)


def test_an_interrupted_recovery_goes_on_to_the_same_adapter(
    place: Path, tmp_path: Path, recovery: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, output = recovering.Student.write, tmp_path / "again.gguf"

    def killed(*_arguments: Any, **_keywords: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(recovering.Student, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        recovered(place, output)
    monkeypatch.setattr(recovering.Student, "write", write)
    again = recovered(place, output, resume=True)
    assert again.recovered.after.kl == pytest.approx(recovery.recovered.after.kl, rel=1e-4)
    assert dict(again.recovered.learnt.held_out) == pytest.approx(dict(recovery.recovered.learnt.held_out))


def test_a_loss_that_is_nan_names_its_step(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgepack.quant.learning.objectives import NextToken

    def broken(_self: object, model: Any, inputs: Any) -> Any:
        return model(input_ids=inputs["input_ids"], use_cache=False).logits.sum() * math.nan

    monkeypatch.setattr(NextToken, "__call__", broken)
    with pytest.raises(NumericError, match="at step 1"):
        recovered(place, tmp_path / "nan.gguf", targets="text")
    assert not (tmp_path / "nan.gguf").exists()


def test_the_package_holds_model_adapter_and_card(place: Path, tmp_path: Path) -> None:
    found = recovered(place, tmp_path / "p.edgepack", steps=1, pack=True)
    with open_unjudged(found.output) as archive:
        names = [member.name for member in archive.members]
    assert names == ["small.gguf", "small-recovery-lora.gguf", "README.md"]
    assert [path.name for path in tmp_path.iterdir()] == ["p.edgepack"]


def test_a_lesson_writes_its_questions_before_it_learns_and_measures_both_ways(place: Path, tmp_path: Path) -> None:
    found = taught(place, tmp_path / "t.gguf")
    questions = tmp_path / "t.questions.jsonl"
    assert len(questions.read_text().splitlines()) == 8
    told = found.json()
    assert told["questions"] == str(questions)
    assert {kind["chance"] for kind in told["knowledge"]["kinds"].values()} == {0.25}
    assert told["forgetting"]["perplexity_rise"] == pytest.approx(
        told["forgetting"]["perplexity"]["after"] / told["forgetting"]["perplexity"]["before"] - 1
    )
    assert told["steps"] == 4
    check_adapter(found.output, read_header(place / "q8.gguf"), place / "q8.gguf")  # a quantisation of the same model
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.gguf", "t.questions.jsonl"]


def test_nothing_taught_is_nothing_forgotten(place: Path, tmp_path: Path) -> None:
    found = taught(place, tmp_path / "zero.gguf", steps=0)
    assert found.taught.forgotten == 0
    assert found.taught.other.agreement == 1
    assert found.taught.before == found.taught.after


def test_a_folder_is_exported_and_packed_with_its_card(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPACK_CACHE", str(place / "cache"))
    found = edgepack.teach(
        place / "model", place / "canon", tmp_path / "p.edgepack", pack=True, ctx=96, ask=4, replay=2, steps=1,
        other=place / "text.txt", **SMALL,
    )  # fmt: skip
    with open_unjudged(found.output) as archive:
        names = [member.name for member in archive.members]
    assert names == ["model.gguf", "model-taught-lora.gguf", "README.md", "p.questions.jsonl"]
    assert execute(["run", str(found.output), "--prompt", "The", "-n", "2", "--threads", "1", "--ctx", "64"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.edgepack", "p.questions.jsonl"]


@pytest.mark.parametrize("command", ["recover", "teach", "teach a folder"])
def test_a_dry_run_tells_time_and_memory_and_writes_nothing(
    place: Path, tmp_path: Path, command: str, capfd: pytest.CaptureFixture[str]
) -> None:
    command, _, folder = command.partition(" ")
    given = {
        "recover": ["--reference", str(place / "model"), "--text", str(place / "text.txt"), "--ctx", "32"],
        "teach": ["--documents", str(place / "canon")],
    }  # fmt: skip
    model = place / ("model" if folder else "small.gguf")
    arguments = [command, str(model), *given[command], "-o", str(tmp_path / "x"), "--dry-run", "--json"]
    assert execute(arguments) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["dry_run"]
    assert told["seconds"] > 0
    assert told["memory_bytes"] > (place / "small.gguf").stat().st_size
    assert not list(tmp_path.iterdir())


def test_projections_that_a_model_lacks_are_refused_by_name(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no projection 'c_attn'"):
        recovered(place, tmp_path / "x.gguf", modules=["c_attn"])
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"pairs": "bad.jsonl"}, r"bad\.jsonl, line 1: field 'answer'"),
        ({"questions": "bad.jsonl"}, r"bad\.jsonl, line 1"),
        ({"other": "short.txt", "replay": 60}, "other text for more than 60 pieces|one block needs"),
    ],
)
def test_a_lesson_that_cannot_be_taught_is_refused(
    place: Path, tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"question": "a"}\n')
    (tmp_path / "short.txt").write_text("a few words")
    given = {key: tmp_path / value if isinstance(value, str) else value for key, value in options.items()}
    with pytest.raises((UsageError, CalibrationError), match=told):
        taught(place, tmp_path / "x.gguf", **given)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl", "short.txt"]


def test_better_answers_that_lack_a_field_are_refused_by_their_line(place: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    answers.write_text('{"question": "a", "answer": "b"}\n{"question": "a"}\n')
    with pytest.raises(UsageError, match=r"answers\.jsonl, line 2: field 'answer' is missing"):
        recovered(place, tmp_path / "x.gguf", answers=answers)
    assert list(tmp_path.iterdir()) == [answers]


def test_a_text_too_short_to_measure_on_is_refused(place: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("only a few words " * 4)
    with pytest.raises(CalibrationError):
        edgepack.recover(place / "small.gguf", place / "model", tmp_path / "short.txt", tmp_path / "x.gguf")


def measured(size: int, kl: float) -> Measured:
    return Measured(size, kl, (kl, kl), 0.9, 10.0, 9.0)


@pytest.mark.parametrize(
    ("after", "larger", "size", "wins"),
    [(0.05, 0.06, 110, True), (0.05, 0.04, 110, False), (0.04, 0.01, 130, True), (0.07, 0.01, 130, False)],
)
def test_equal_bytes_are_a_type_that_fits_or_a_point_on_the_way_to_the_next(
    after: float, larger: float, size: int, wins: bool
) -> None:
    found = verdict(measured(100, 0.1), measured(110, after), measured(size, larger), Larger("q", size, size <= 110))
    assert found.wins is wins
    if size > 110:
        assert found.equal_kl == pytest.approx(0.1 * (larger / 0.1) ** (1 / 3))
    assert ("wins over" if wins else "loses to") in found.line


def test_the_rate_falls_with_the_width() -> None:
    assert auto_rate(576) > auto_rate(4096) > 0
    assert auto_rate(1) == auto_rate(2)


@pytest.mark.parametrize(
    "wrong", [{"share": 0.0}, {"targets": "both"}, {"hardest": 0}, {"epochs": 0.0}, {"length": 4}, {"rate": -1.0}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        RecoverSettings(**wrong)
    with pytest.raises(UsageError):
        replace(TeachSettings(), questions=0)


def test_torch_is_left_as_it_was(place: Path, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    recovered(place, tmp_path / "x.gguf", steps=1)
    assert torch.equal(torch.random.get_rng_state(), state)
