"""`export --max-size` and `--pack`: what is shipped never exceeds the size, and is the largest that fits."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from edgepack.cli import execute as run
from edgepack.export.mapped_model import open_model
from edgepack.pipeline.makers.gguf import ladder, open_gguf
from edgepack.pipeline.request import ExportRequest

if TYPE_CHECKING:
    from pathlib import Path


def export(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, object]:
    assert run(["export", *map(str, arguments), "--json"]) == 0
    result: dict[str, object] = json.loads(capsys.readouterr().out)
    return result


@pytest.mark.parametrize("limit", [5_000_000, 4_309_951, 2_800_000])
def test_the_largest_target_that_fits_is_taken(
    limit: int, books: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.gguf"
    result = export(capsys, books, "--max-size", limit, "-o", path)
    assert path.stat().st_size == result["bytes"] <= limit
    maker = open_gguf(ExportRequest(books), None)
    sizes = [maker.outline(target).bytes for target in ladder(open_model(books))]
    assert result["bytes"] == max(size for size in sizes if size <= limit)


def test_a_packed_export_restores_to_the_plain_one(
    books: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, archive, restored = tmp_path / "a.gguf", tmp_path / "b.edgepack", tmp_path / "c.gguf"
    export(capsys, books, "--target", "q5km", "-o", plain)
    result = export(capsys, books, "--target", "q5km", "--pack", "-o", archive)
    assert result["bytes"] == archive.stat().st_size < plain.stat().st_size
    assert run(["unpack", str(archive), "-o", str(restored)]) == 0
    assert restored.read_bytes() == plain.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "b.edgepack", "c.gguf"]


def test_a_size_means_the_archive_when_one_is_shipped(
    books: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limit, path = 4_100_000, tmp_path / "x.edgepack"
    result = export(capsys, books, "--max-size", limit, "--pack", "-o", path)
    assert path.stat().st_size == result["bytes"] <= limit
    gguf = export(capsys, books, "--target", result["target"], "--dry-run")
    assert int(str(gguf["bytes"])) > limit  # the GGUF itself would not have fitted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-size", "1MB"], "the least possible is 2.73 MB as gguf-q2k"),
        (["--max-size", "4MB", "--target", "q6k"], "gguf-q6k makes 4.88 MB, more than 4 MB"),
        (["--max-size", "4MB", "--target", "q6k", "--pack"], "the archive as gguf-q6k is larger than 4 MB"),
        ([], "expected --target, or --max-size"),
        (["--target", "q6k", "--pack", "--shard-size", "2MB"], "an archive is one file"),
        (["--target", "edge-nf4", "--max-size", "2MB"], "--max-size: edge-nf4 makes"),
    ],
)
def test_sizes_that_cannot_be_met_are_refused_and_leave_nothing(
    arguments: list[str], message: str, books: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", str(books), "-o", str(tmp_path / "x.out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
