"""Every command that takes a model at a URL does with it what it does with the folder, or refuses it in a line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from model_in_memory import model_in_memory

import edgepack
from edgepack.cli import execute
from edgepack.edge.fidelity.scoring import ScoringOptions
from edgepack.errors import CheckFailedError, UsageError
from edgepack.files.remote import open_remote
from edgepack.packaging.derivation import read_derivation
from edgepack.pipeline.frontier.found import Frontier
from edgepack.pipeline.importance import ImportanceRun
from edgepack.pipeline.located import opened_place

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("torch")

BY_BLOCKS = ScoringOptions(ctx=32, max_chunks=3, threads=2, blockwise=True)


@pytest.fixture(scope="module")
def url(books: Path) -> Iterator[str]:
    """The bundled model in fsspec's memory."""
    with model_in_memory(books, "commands") as found:
        yield found


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("Once upon a time there was a little cat who lived in a big house. " * 60)
    return path


@pytest.fixture(scope="module")
def q4(books: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("q4") / "q4.gguf"
    edgepack.export(books, "gguf-q4km", output=path, threads=1)
    return path


def test_imatrix(url: str, books: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "url").mkdir()
    own = edgepack.imatrix(books, text, tmp_path / "own.gguf", ctx=64, chunks=3, threads=1)
    found = edgepack.imatrix(url, text, tmp_path / "url" / "own.gguf", ctx=64, chunks=3, threads=1)
    assert own.output is not None
    assert found.output is not None
    assert found.output.read_bytes() == own.output.read_bytes()
    assert [path.name for path in (tmp_path / "url").iterdir()] == ["own.gguf"], "nothing is left beside the file"


def test_an_interrupted_imatrix_of_the_same_files_is_gone_on_with(url: str, text: Path, tmp_path: Path) -> None:
    """Small files are fetched anew for each run; other weights are another model."""

    def key() -> str:
        with opened_place(url, tmp_path / "i.gguf") as (folder, found):
            return ImportanceRun(folder, text, tmp_path / "i.gguf", located=found)._key("text")

    before = key()
    assert key() == before
    file = open_remote(url).files["model.safetensors"]
    fsspec.filesystem("memory").pipe_file(file.url, file.read(0, file.size))  # written again
    assert key() != before


def test_export_with_an_importance_matrix_of_its_own(url: str, books: Path, text: Path, tmp_path: Path) -> None:
    def exported(model: Path | str, name: str) -> bytes:
        path = tmp_path / name / "m.gguf"
        path.parent.mkdir()
        edgepack.export(model, "gguf-q4km", output=path, calibration=text, refine=False, sequences=2, length=64,
                        threads=1)  # fmt: skip
        assert [each.name for each in path.parent.iterdir()] == ["m.gguf"]
        return path.read_bytes()

    assert exported(url, "url") == exported(books, "own")


def test_validate_is_that_of_the_folder_by_blocks(url: str, books: Path, q4: Path, text: Path) -> None:
    own = edgepack.validate(q4, books, text=text, scoring=BY_BLOCKS, max_mean_error=0.5)
    found = edgepack.validate(q4, url, text=text, scoring=BY_BLOCKS, max_mean_error=0.5)
    assert found.validation.statistics.divergence.mean == own.validation.statistics.divergence.mean
    assert found.run.reference == own.run.reference
    assert found.candidate.findings is not None
    assert found.candidate.findings == own.candidate.findings
    assert not found.candidate.findings.differences


def test_the_command_suggests_a_larger_type(url: str, q4: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scoring = ["--text", str(text), "--ctx", "32", "--chunks", "2", "--threads", "2"]
    assert execute(["validate", str(q4), "--reference", url, *scoring, "--max-kl", "0.002", "--suggest"]) == (
        CheckFailedError.exit_code
    )
    assert "try gguf-" in capsys.readouterr().err


def test_compare(url: str, q4: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compare", str(q4), str(q4), "--reference", url, "--text", str(text), "--ctx", "32", "--chunks", "2"]
    assert execute([*arguments, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["candidates"]) == 2


@pytest.mark.parametrize("command", ["validate", "compare"])
def test_a_reference_that_cannot_write_wants_a_text_before_any_work(
    command: str, q4: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute([command, str(q4), "--reference", "memory://nowhere"]) == UsageError.exit_code
    told = capsys.readouterr().err.strip()
    assert told.endswith("expected --text FILE, got 'memory://nowhere'")
    assert "\n" not in told


def test_embeddings_are_compared_with_a_folder_s(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="gives embeddings: expected --reference as a folder, got the URL 'memory://m'"
    ):
        edgepack.validate_embeddings(tmp_path / "m.gguf", "memory://m")


def test_a_gate_of_an_export_is_judged_by_the_original_at_its_url(url: str, text: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"text": text, "chunks": 2, "threads": 2}
    found = edgepack.export(url, "gguf-q8", output=tmp_path / "m.gguf", max_kl=0.5, max_mean_error=0.1, **options)
    assert found.passed
    assert found.validation is not None
    assert found.validation.candidates[0].findings is not None


@pytest.mark.parametrize("options", [{"for_device": "gtx-1660"}, {"for_device": "gtx-1660", "host_type": "q5k"},
                                     {"for_device": "gtx-1660", "max_memory": "4MB"}])  # fmt: skip
def test_the_wire_s_host_is_that_of_the_folder(url: str, books: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    def planned(model: Path | str) -> dict[str, Any]:
        plan = edgepack.export(model, "wire", output=tmp_path / "m.edgepack", bits=4.0, dry_run=True, **options)
        told = plan.as_json()
        return {name: told[name] for name in ("output", "bytes", "target", "source_bytes", "tensors")}

    assert planned(url) == planned(books)
    assert not list(tmp_path.iterdir())


def test_a_frontier_is_that_of_the_folder_by_blocks(url: str, books: Path, text: Path, tmp_path: Path) -> None:
    def measured(model: Path | str, folder: str) -> dict[str, Any]:
        found = edgepack.frontier(
            model, text, text, tmp_path / folder, points="^(plain|importance)/Q4_K_M$", scoring=BY_BLOCKS, sequences=2,
            length=64, devices=(),
        )  # fmt: skip
        assert isinstance(found, Frontier)
        return {point.id: (point.file_bytes, point.shipped_bytes, found.mean_kl(point)) for point in found.measured}

    assert measured(url, "url") == measured(books, "own")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own", "url"], "nothing of the work is left"


def test_what_a_file_was_made_from_names_the_weights_too(url: str, books: Path, tmp_path: Path) -> None:
    def sources(model: Path | str, name: str) -> set[tuple[str, str]]:
        edgepack.export(model, "gguf-q8", output=tmp_path / f"{name}.gguf", provenance=True)
        return {(each.name, each.sha256) for each in read_derivation(tmp_path / f"{name}.gguf").sources}

    found = sources(url, "url")
    assert "model.safetensors" in {name for name, _digest in found}
    assert found == sources(books, "own")
