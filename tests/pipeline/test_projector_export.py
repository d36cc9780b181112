"""`export --mmproj`: what sees alone, beside its model, and in one archive with it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from references.tiny_checkpoints import TinyModel, random_model, write_checkpoint
from references.tiny_projectors import EYES, write_eyes

import edgepack
from edgepack.cli import execute
from edgepack.errors import UnsupportedModelError, UsageError
from edgepack.gguf.reader import read_header
from edgepack.packaging.archive import open_archive
from edgepack.packaging.derivation import read_derivation
from edgepack.pipeline.export import run_export
from edgepack.pipeline.request import ExportRequest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, books: Path) -> Path:
    folder = tmp_path_factory.mktemp("eyes") / "TinyVLM-Instruct"
    write_eyes(EYES[0], folder, books)
    return folder


def types(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.type.name for tensor in read_header(path).tensors}


def test_alone_it_is_named_as_llama_cpp_names_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert execute(["export", str(model), "--mmproj", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["output"] == "mmproj-TinyVLM-Instruct-F16.gguf"
    assert told["target"] == "mmproj-f16"
    assert [path.name for path in tmp_path.iterdir()] == [told["output"]]
    path = tmp_path / told["output"]
    assert told["bytes"] == path.stat().st_size
    assert types(path)["v.blk.0.attn_q.weight"] == "F16"
    assert {row["name"] for row in told["tensors"]} == set(types(path))


@pytest.mark.parametrize(("kind", "expected"), [("q8_0", "Q8_0"), ("bf16", "BF16"), ("f32", "F32"), ("q8", "Q8_0")])
def test_its_type_is_chosen_by_an_option_of_its_own(model: Path, tmp_path: Path, kind: str, expected: str) -> None:
    result = run_export(ExportRequest(model, mmproj=True, mmproj_type=kind, output=tmp_path / "eyes.gguf"))
    assert types(result.output)["v.blk.0.attn_q.weight"] == expected


def test_beside_a_model_both_files_appear(model: Path, tmp_path: Path) -> None:
    result = run_export(ExportRequest(model, "gguf-q8", mmproj=True, output=tmp_path / "model.gguf"))
    assert result.projector == tmp_path / "mmproj-TinyVLM-Instruct-F16.gguf"
    assert {path.name for path in tmp_path.iterdir()} == {"model.gguf", result.projector.name}
    assert result.as_json()["projector"] == str(result.projector)
    assert not any("--mmproj" in line for line in result.outline.limits)
    assert "general.type" in read_header(result.projector).metadata


def test_a_dry_run_tells_both_and_writes_none(model: Path, tmp_path: Path) -> None:
    request = ExportRequest(model, "gguf-q8", mmproj=True, dry_run=True, output=tmp_path / "model.gguf")
    result = run_export(request)
    assert result.as_json()["projector"] == str(tmp_path / "mmproj-TinyVLM-Instruct-F16.gguf")
    alone = run_export(ExportRequest(model, mmproj=True, dry_run=True, output=tmp_path / "eyes.gguf"))
    assert alone.bytes > 0
    assert list(tmp_path.iterdir()) == []


def test_a_size_counts_what_sees(model: Path, tmp_path: Path) -> None:
    eyes = run_export(ExportRequest(model, mmproj=True, dry_run=True, output=tmp_path / "eyes.gguf")).bytes
    reading = run_export(ExportRequest(model, "gguf-q8", dry_run=True, output=tmp_path / "m.gguf")).bytes
    fits = ExportRequest(model, "gguf-q8", mmproj=True, max_size=reading + eyes, output=tmp_path / "m.gguf")
    assert run_export(fits).bytes == reading
    with pytest.raises(UsageError, match="--max-size"):
        run_export(
            ExportRequest(model, "gguf-q8", mmproj=True, max_size=reading + eyes - 1, output=tmp_path / "n.gguf")
        )


def test_packed_it_is_a_member_of_the_same_archive(model: Path, tmp_path: Path) -> None:
    result = run_export(ExportRequest(model, "gguf-q8", mmproj=True, pack=True, output=tmp_path / "vlm.edgepack"))
    assert [path.name for path in tmp_path.iterdir()] == ["vlm.edgepack"]
    assert "projector" not in result.as_json()
    with open_archive(result.output) as archive:
        assert [member.name for member in archive.members] == [
            "vlm.gguf",
            "mmproj-TinyVLM-Instruct-F16.gguf",
            "derivation.intoto.json",
        ]


def test_making_it_again_gives_the_same_projector(model: Path, tmp_path: Path) -> None:
    request = ExportRequest(model, "gguf-q8", mmproj=True, mmproj_type="bf16", output=tmp_path / "vlm.edgepack")
    archive = run_export(request).output
    again = edgepack.check_provenance(archive, model)
    assert again.same
    assert again.differences == ()
    assert [subject.name for subject in read_derivation(archive).subjects] == [
        "vlm.gguf",
        "mmproj-TinyVLM-Instruct-BF16.gguf",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pack": True}, "--mmproj with --pack: an archive holds a model"),
        ({"calibration": "x.txt"}, "--calibration: expected --target with it"),
        ({"passes": ("awq",)}, "--pass: expected --target with it"),
        ({"mmproj_type": "q4_k"}, "--mmproj-type: expected f16, bf16, q8_0, f32, got 'q4_k'"),
        ({"mmproj": False, "mmproj_type": "f16", "target": "gguf-q8"}, "--mmproj-type: expected --mmproj with it"),
    ],
)
def test_options_that_say_nothing_of_what_sees_are_refused(
    model: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run_export(
            ExportRequest(
                model,
                **{"mmproj": True, "output": tmp_path / ("x.edgepack" if "pack" in options else "x.gguf"), **options},
            )
        )  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_only_reads_is_refused_before_anything_is_written(tmp_path: Path, books: Path) -> None:
    folder = write_checkpoint(random_model(TinyModel("llama", "Llama")), tmp_path / "m", books)
    out = tmp_path / "out"
    out.mkdir()
    for target in (None, "gguf-q8"):
        with pytest.raises(UnsupportedModelError, match="--mmproj: expected a model that sees"):
            run_export(ExportRequest(folder, target, mmproj=True, output=out / "x.gguf"))
    assert list(out.iterdir()) == []


def test_a_gguf_has_no_eyes_to_export(model: Path, tmp_path: Path) -> None:
    reading = run_export(ExportRequest(model, "gguf-q8", output=tmp_path / "m.gguf")).output
    with pytest.raises(UsageError, match="--mmproj: expected a Hugging Face folder, got the file"):
        run_export(ExportRequest(reading, "gguf-q8", mmproj=True, output=tmp_path / "n.gguf"))
