"""Certificates, tasks, spectra, tuning, caches and proofs by an original at a URL are those by the folder."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from blocks_entered import blocks_entered
from model_in_memory import model_in_memory

import edgepack
from edgepack.cli import execute
from edgepack.edge.fidelity.scoring import ScoringOptions
from edgepack.edge.fidelity.tasks.runner import run_task
from edgepack.edge.fidelity.tasks.tasks import ChoiceItem
from edgepack.errors import UsageError
from edgepack.files.remote import RemoteFile
from edgepack.pipeline.evaluate import evaluate
from edgepack.pipeline.fidelity import open_reference
from edgepack.pipeline.located import opened_place

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("torch")

BY_BLOCKS = ScoringOptions(ctx=32, max_chunks=3, threads=2, blockwise=True)
STORY = "Once upon a time there was a little cat who lived in a big house. "
ITEMS = [
    ChoiceItem("Once upon a time there was", ("a little cat", "of of of of of", "the house"), 0),
    ChoiceItem("The cat lived in a", ("big house by the sea", "if"), 0),
    ChoiceItem("It was a dark and", ("stormy night", "banana"), 1),
]


@pytest.fixture(scope="module")
def url(books: Path) -> Iterator[str]:
    """The bundled model in fsspec's memory."""
    with model_in_memory(books, "certified") as found:
        yield found


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(STORY * 60)
    return path


@pytest.fixture(scope="module")
def q4(books: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("q4") / "q4.gguf"
    edgepack.export(books, "gguf-q4km", output=path, threads=1, provenance=True)
    return path


def _items(path: Path, items: list[ChoiceItem]) -> Path:
    rows = [{"ctx": each.context, "endings": each.endings, "label": each.label} for each in items]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_a_certificate_is_that_of_the_folder_by_blocks(
    url: str, books: Path, q4: Path, text: Path, tmp_path: Path
) -> None:
    def certified(reference: Path | str, name: str) -> tuple[dict[str, Any], bytes]:
        scoring = ScoringOptions(threads=2, blockwise=True, max_chunks=3)
        found = edgepack.certify(
            q4, reference, tmp_path / name / "q4.gguf", text=text, ctx=32, stored_tokens=16, scoring=scoring
        )
        return dict(found.figures), found.output.read_bytes()

    for name in ("own", "url"):
        (tmp_path / name).mkdir()
    assert certified(url, "url") == certified(books, "own")
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("own", "url")]
    assert names[0] == names[1], "nothing of the original is left beside the file"
    assert edgepack.replay(tmp_path / "url" / "q4.gguf").reproduced


def test_the_certify_command(url: str, q4: Path, text: Path, tmp_path: Path) -> None:
    arguments = ["certify", str(q4), "--reference", url, "--text", str(text), "--ctx", "32", "--chunks", "2"]
    assert execute([*arguments, "-o", str(tmp_path / "q4.edgepack"), "--threads", "2"]) == 0
    assert (tmp_path / "q4.edgepack").is_file()


def test_a_certificate_by_an_original_that_cannot_write_wants_a_text_before_any_work(
    q4: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "q4.edgepack"
    assert execute(["certify", str(q4), "--reference", "memory://nowhere", "-o", str(output)]) == UsageError.exit_code
    told = capsys.readouterr().err.strip()
    assert told.endswith("expected --text FILE, got 'memory://nowhere'")
    assert "\n" not in told
    assert not list(tmp_path.iterdir())


def test_tasks_are_answered_as_by_the_folder(url: str, books: Path, q4: Path, tmp_path: Path) -> None:
    items = _items(tmp_path / "items.jsonl", ITEMS)
    own = edgepack.evaluate(q4, books, [str(items)], ctx=64, threads=2)["items"]
    found = edgepack.evaluate(q4, url, [str(items)], ctx=64, threads=2)["items"]
    assert {name: found[name] for name in found} == {name: own[name] for name in own}
    pairs = zip(found.items_in_order, own.items_in_order, strict=True)  # type: ignore[attr-defined]
    for ours, theirs in pairs:
        assert ours.reference == theirs.reference
        assert ours.candidate == theirs.candidate
        assert ours.reference_perplexity == pytest.approx(theirs.reference_perplexity, rel=1e-4)


def test_the_evaluate_command(url: str, q4: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = _items(tmp_path / "items.jsonl", ITEMS)
    assert execute(["evaluate", str(q4), "--reference", url, "--task", str(items), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tasks"]["items"]["acc"]["items"] == len(ITEMS)


def test_weights_are_read_once_for_all_endings(books: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(open_reference(books, ScoringOptions(blockwise=True))) as blocks:
        model = blocks._model
        entered = blocks_entered(model, monkeypatch)
        with closing(open_reference(books, ScoringOptions(blockwise=False))) as whole:
            found = run_task(ITEMS, blocks, whole)
        assert entered == list(range(model.block_count))
    for item in found.items_in_order:
        assert item.reference == item.candidate
        assert item.reference_perplexity == pytest.approx(item.candidate_perplexity, rel=1e-4)


@pytest.mark.parametrize("task", ["answers.jsonl", "harness:hellaswag"])
def test_an_original_that_cannot_write_answers_choices_alone(task: str, q4: Path, tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text(json.dumps({"prompt": "Once upon a", "answer": "time"}), encoding="utf-8")
    named = str(tmp_path / task) if task.endswith(".jsonl") else task
    with pytest.raises(UsageError, match="cannot write: expected a file of items with choices, got 'memory://nowhere'"):
        edgepack.evaluate(q4, "memory://nowhere", [named])


def test_a_folder_answers_by_writing_too(books: Path, q4: Path, tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text(json.dumps({"prompt": "Once upon a", "answer": "time"}), encoding="utf-8")
    found = evaluate(q4, books, [str(tmp_path / "answers.jsonl")], ScoringOptions(ctx=64, threads=2))
    assert found["answers"]["exact_match"].items == 1


def test_spectra_and_architecture_are_those_of_the_folder(url: str, books: Path, text: Path) -> None:
    own = edgepack.analyze(books, text=text, sequences=2, length=16)
    found = edgepack.analyze(url, text=text, sequences=2, length=16)
    assert found.json() == own.json()
    assert edgepack.architecture_of(url) == edgepack.architecture_of(books)


def test_the_analyze_command(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["analyze", url, "--architecture", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["architecture"] == "llama"


def test_a_file_is_tuned_against_a_url_as_against_the_folder(
    url: str, books: Path, q4: Path, text: Path, tmp_path: Path
) -> None:
    def tuned(reference: Path | str, name: str) -> bytes:
        output = tmp_path / name
        edgepack.tune(q4, reference, text, output, steps=1, ctx=32, sequences=4, parts=["vectors"])
        return output.read_bytes()

    assert tuned(url, "url.gguf") == tuned(books, "own.gguf")


def test_caches_are_held_against_an_original_at_a_url(url: str, books: Path, q4: Path, text: Path) -> None:
    def measured(original: Path | str) -> list[tuple[str, float | None]]:
        found = edgepack.kv(q4, text, original=original, types=["q8_0"], ctx=32, chunks=2, threads=1, spectra=False)
        return [(cost.name, cost.original_kl) for cost in found.table.costs]

    own, found = measured(books), measured(url)
    assert [name for name, _kl in found] == [name for name, _kl in own]
    assert [kl for _name, kl in found] == pytest.approx([kl for _name, kl in own], rel=1e-3)


def test_a_file_is_made_again_from_a_url(url: str, q4: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert edgepack.reproduce(q4, url, threads=1).same
    assert execute(["provenance", str(q4), "--check", url]) == 0
    assert "the same bytes" in capsys.readouterr().out


def test_other_weights_at_the_url_are_told(url: str, q4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RemoteFile, "sha256", lambda *_arguments: "0" * 64)
    found = edgepack.reproduce(q4, url)
    assert not found.same
    assert found.first_difference == "input model.safetensors (model): has other bytes"


def test_weights_that_nobody_reads_are_no_part_of_the_model(url: str) -> None:
    system, other = fsspec.filesystem("memory"), f"{url.replace('memory:/', '')}/pytorch_model.bin"
    system.pipe_file(other, b"other")
    try:
        with opened_place(url, None) as (_folder, located):
            assert located is not None
            assert [file.name for file in located.weights] == ["model.safetensors"]
    finally:
        system.rm_file(other)


def test_a_grid_of_sparsities(url: str, books: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def measured(model: Path | str) -> list[dict[str, float]]:
        options = ["--sparsity", "0.5", "--method", "magnitude", "--min-agreement", "0", "--blockwise", "--json"]
        scoring = ["--calibration", str(text), "--text", str(text), "--ctx", "32", "--chunks", "1", "--threads", "1"]
        assert execute(["prune-grid", str(model), *options, *scoring]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["model"] == str(model)
        levels: list[dict[str, float]] = told["levels"]
        return levels

    assert measured(url) == measured(books)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["recover", "q4.gguf", "--reference", "memory://m", "--text", "t"], "several times while an adapter"),
        (["recover", "q4.gguf", "--reference", ".", "--teacher", "memory://m", "--text", "t"], "several times while"),
        (["teach", "memory://m", "--documents", "."], "several times while an adapter is trained"),
        (["compress", "memory://m", "recipe.toml", "-o", "out"], "stages are kept under the digests of its files"),
        (["kv", "memory://m", "--text", "t"], "kv measures a file of it, which edgepack export makes"),
        (["prune-grid", "memory://m", "--sparsity", "0.5"], "expected --text FILE"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line_before_any_work(
    arguments: list[str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert execute(arguments) == UsageError.exit_code
    told = capsys.readouterr().err.strip()
    assert why in told
    assert "memory://m'" in told
    assert "\n" not in told
    assert not list(tmp_path.iterdir())
