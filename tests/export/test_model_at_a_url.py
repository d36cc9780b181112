"""A model at a URL makes the bytes of the same folder, by ranges alone; what cannot be read of one is refused in a line."""

from __future__ import annotations

import json
import pickle
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from model_in_memory import model_in_memory

import edgepack
from edgepack.cli import execute
from edgepack.errors import CheckpointError, DependencyError, NetworkError, UsageError
from edgepack.export.checkpoint import open_checkpoint
from edgepack.export.formats.safetensors_file import SafetensorsFile
from edgepack.files import remote
from edgepack.files.remote import RemoteFile, is_url, open_remote

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

from tiny_llama import write_tiny

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def url(books: Path) -> Iterator[str]:
    """The bundled model in fsspec's memory."""
    with model_in_memory(books, "models") as found:
        yield found


def exported(model: Any, folder: Path, **options: Any) -> bytes:
    folder.mkdir()
    result = edgepack.export(model, output=folder / "m.gguf", **options)
    assert [path.name for path in folder.iterdir()] == ["m.gguf"], "nothing is left beside the file"
    return result.output.read_bytes()


def test_the_bytes_are_the_folder_s(url: str, books: Path, tmp_path: Path) -> None:
    assert exported(url, tmp_path / "url", target="gguf-q4km") == exported(books, tmp_path / "own", target="gguf-q4km")


def test_the_command_takes_one_too(books: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = f"file://{books}"
    assert execute(["export", place, "--target", "gguf-q8", "-o", str(tmp_path / "m.gguf"), "--json", "--dry-run"]) == 0
    told = json.loads(capsys.readouterr().out)
    plain = edgepack.export(books, "gguf-q8", output=tmp_path / "m.gguf", dry_run=True).as_json()
    assert told["bytes"] == plain["bytes"]
    assert not list(tmp_path.iterdir())


def test_rows_are_the_folder_s_in_another_process_too(tmp_path: Path) -> None:
    tiny = open_checkpoint(write_tiny(tmp_path / "tiny"))
    system = fsspec.filesystem("memory")
    for path in tiny.path.iterdir():
        system.pipe_file(f"/tiny/{path.name}", path.read_bytes())
    found = open_remote("memory://tiny")
    opened = open_checkpoint(tiny.path, {"model.safetensors": found.files["model.safetensors"]})
    for name, spec in tiny.tensors.specs.items():
        own = tiny.tensors.read_rows(name, 0, spec.rows)
        np.testing.assert_array_equal(opened.tensors.read_rows(name, 0, spec.rows), own)
        again = pickle.loads(pickle.dumps(opened.tensors))
        np.testing.assert_array_equal(again.read_rows(name, 1 % spec.rows, spec.rows), own[1 % spec.rows :])
    system.rm("/tiny", recursive=True)


def test_weights_are_never_read_whole(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths, read = [], RemoteFile.read

    def watched(self: RemoteFile, start: int, length: int) -> bytes:
        if self.url.endswith(".safetensors"):
            lengths.append(length)
        return read(self, start, length)

    monkeypatch.setattr(RemoteFile, "read", watched)
    edgepack.export(url, "gguf-q4km", output=tmp_path / "m.gguf")
    size = open_remote(url).files["model.safetensors"].size
    assert max(lengths) < size / 2
    assert sum(lengths) < 1.1 * size, "and nothing twice"


@pytest.mark.parametrize(
    ("options", "told"),
    [({"validate": True}, "holding a file against its original.* block by block.*: expected --text FILE, got the URL"),
     ({"max_mean_error": 0.1}, "holding a file against its original.*: expected --text FILE, got the URL"),
     ({"mmproj": True}, "--mmproj: expected MODEL as a folder, got the URL")],
)  # fmt: skip
def test_what_reads_more_than_tensors_is_refused(url: str, tmp_path: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        edgepack.export(url, "gguf-q4km", output=tmp_path / "m.gguf", **options)


def test_a_place_without_a_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match="model 'memory://nowhere': cannot be read: FileNotFoundError") as refused:
        edgepack.export("memory://nowhere", "gguf-q8", output=tmp_path / "m.gguf")
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_model_is_refused_as_a_local_one(tmp_path: Path) -> None:
    system = fsspec.filesystem("memory")
    system.pipe_file("/other/notes.txt", b"nothing")
    with pytest.raises(CheckpointError, match=r"expected config\.json"):
        edgepack.export("memory://other", "gguf-q8", output=tmp_path / "m.gguf")
    system.rm("/other", recursive=True)


def test_an_unknown_protocol_and_a_missing_package_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="a URL that fsspec reads: Protocol not known: nope"):
        open_remote("nope://x/y")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(DependencyError, match=r"model 's3://bucket/x': Install s3fs to access S3"):
        open_remote("s3://bucket/x")
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(DependencyError, match="'fsspec' is not installed"):
        open_remote("memory://x")


def test_a_file_that_became_shorter_is_an_error(url: str, books: Path) -> None:
    found = open_remote(url).files["model.safetensors"]
    source = SafetensorsFile(books / "model.safetensors", found)
    fsspec.filesystem("memory").pipe_file(f"/models/{books.name}/model.safetensors", bytes(64))
    last = max(source.specs.values(), key=lambda spec: spec.rows)
    with pytest.raises(CheckpointError, match="memory://.*: the file became shorter while it was read"):
        source.read_rows(last.name, 0, last.rows)


def test_a_truncated_file_is_told_by_its_url(url: str, books: Path) -> None:
    found = open_remote(url).files["model.safetensors"]
    with pytest.raises(CheckpointError, match=r"memory://models/.*/model\.safetensors: .*file ends after"):
        SafetensorsFile(books / "model.safetensors", RemoteFile(found.url, found.size - 1))


@pytest.mark.parametrize(("place", "expected"), [
    ("s3://b/x", True), ("memory://m", True), ("C:\\models\\x", False), ("/models/x", False), ("models", False), (3, False),
])  # fmt: skip
def test_what_is_a_url(place: object, expected: bool) -> None:
    assert is_url(place) is expected


def test_names_that_lead_out_of_the_folder_are_not_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Hostile:
        def ls(self, path: str, detail: bool) -> list[dict[str, Any]]:
            assert detail
            return [{"name": name, "type": "file", "size": 1} for name in ("x/..", "x/a\\b", "x/good", "x/")]

    monkeypatch.setattr(remote, "_system", lambda _url: (Hostile(), "x"))
    found = open_remote("s3://b/x")
    assert set(found.files) == {"good", "x"}


def test_a_small_file_that_is_not_small_is_refused(url: str, tmp_path: Path) -> None:
    found = open_remote(url)
    huge = remote.RemoteFolder(found.url, {"config.json": RemoteFile(f"{found.url}/config.json", 1 << 40)})
    with pytest.raises(CheckpointError, match="expected at most"):
        huge.fetch("config.json", tmp_path)
