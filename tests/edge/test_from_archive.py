"""A model that is decoded out of its archive answers as the installed one, takes no disk, and is verified as it is."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import Shape, write_random

from edgepack.cli import execute as run
from edgepack.edge.install import in_place
from edgepack.edge.install.cache import ModelCache
from edgepack.edge.install.in_place import FromArchive
from edgepack.edge.install.model_file import prepare
from edgepack.edge.llama.options import RuntimeOptions
from edgepack.edge.llama.runtime import LoadedModel
from edgepack.edge.llama.virtual_file import VirtualFile, virtual_file
from edgepack.errors import IntegrityError, ModelRuntimeError
from edgepack.packaging.archive import Archive, open_archive
from edgepack.packaging.pack import pack_archive
from edgepack.packaging.restore.member_reader import MemberReader
from edgepack.progress import silent

if TYPE_CHECKING:
    from pathlib import Path

TOKENS = [1, 2, 3, 4, 5]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = Shape(layers=2, width=256, heads=4, head_width=64, feed_forward=1024)
    return write_random(tmp_path_factory.mktemp("source") / "model.gguf", shape)


@pytest.fixture(scope="module")
def archive(source: Path) -> Path:
    return pack_archive(source, source.with_suffix(".edgepack"), threads=1).output


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelCache:
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    return ModelCache()


def logits(path: Path) -> np.ndarray:
    with LoadedModel(path, RuntimeOptions(n_ctx=64, threads=1)) as model:
        return model.logits(TOKENS)


def test_a_model_out_of_its_archive_gives_the_very_logits_of_the_file(source: Path, archive: Path) -> None:
    assert np.array_equal(logits(archive), logits(source))


def test_running_in_place_installs_nothing(cache: ModelCache, archive: Path) -> None:
    prepared = prepare(archive, from_archive=FromArchive.ALWAYS, progress=silent)
    assert prepared.path == archive
    assert not list(cache.folder.iterdir())


def test_adapters_of_the_archive_are_files_and_its_model_is_none(
    cache: ModelCache, source: Path, tmp_path: Path
) -> None:
    adapter = write_random(tmp_path / "adapter.gguf", Shape(layers=1))
    archive = pack_archive(source, tmp_path / "both.edgepack", include=[adapter]).output
    prepared = prepare(archive, from_archive=FromArchive.ALWAYS, progress=silent)
    assert [path.read_bytes() for path in prepared.adapters] == [adapter.read_bytes()]
    assert [path.suffix for path in sorted(cache.folder.glob("*.gguf"))] == [".gguf"]


def test_the_command_answers_alike_in_place_and_installed(
    cache: ModelCache, archive: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for wish in ("always", "never", "auto"):
        options = ["--prompt", "hello", "--json", "--temperature", "0", "--max-tokens", "4", "--threads", "1"]
        assert run(["run", str(archive), "--from-archive", wish, *options]) == 0
        texts.append(json.loads(capfd.readouterr().out)["text"])
        assert bool(list(cache.folder.glob("*.gguf"))) == (wish != "always")
    assert len(set(texts)) == 1


@pytest.mark.parametrize(("free", "in_place_"), [(10, True), (1 << 40, False)])
def test_auto_reads_in_place_only_where_the_disk_has_no_room(
    cache: ModelCache, archive: Path, monkeypatch: pytest.MonkeyPatch, free: int, in_place_: bool
) -> None:
    monkeypatch.setattr(in_place.shutil, "disk_usage", lambda _path: SimpleNamespace(free=free))
    said: list[str] = []
    prepared = prepare(archive, from_archive=FromArchive.AUTO, progress=silent, note=said.append)
    assert (prepared.path == archive) == in_place_
    assert any("decoding the model into memory" in text for text in said) == in_place_


def test_auto_takes_what_is_installed_already(
    cache: ModelCache, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = cache.install(archive).model
    monkeypatch.setattr(in_place.shutil, "disk_usage", lambda _path: SimpleNamespace(free=10))
    assert prepare(archive, from_archive=FromArchive.AUTO, progress=silent).path == installed


def test_where_the_c_library_cannot_it_is_installed_and_said(
    cache: ModelCache, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_place, "can_open_virtual_files", lambda: False)
    said: list[str] = []
    prepared = prepare(archive, from_archive=FromArchive.ALWAYS, progress=silent, note=said.append)
    assert prepared.path.parent == cache.folder
    assert "fopencookie" in " ".join(said)


def test_a_damaged_chunk_is_named_and_no_model_opens(archive: Path, tmp_path: Path) -> None:
    copy = shutil.copy(archive, tmp_path / "damaged.edgepack")
    with open_archive(copy) as opened:
        chunk = list(opened.chunks(opened.main))[-1]
    with copy.open("r+b") as stream:
        stream.seek(chunk.offset + chunk.record_bytes // 2)
        stream.write(b"\xff\x00\xff")
    with pytest.raises(IntegrityError, match=f"chunk {chunk.number} "):
        LoadedModel(copy, RuntimeOptions(n_ctx=64))


def test_a_chunk_that_restores_to_other_bytes_than_the_index_says_is_refused(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record is whole: only the digest of what it restores to tells."""
    monkeypatch.setattr(Archive, "read_chunk", lambda _archive, chunk: np.zeros(chunk.raw_bytes, np.uint8))
    with (
        open_archive(archive) as opened,
        closing(MemberReader(opened, opened.main)) as reader,
        pytest.raises(IntegrityError, match="chunk 0 "),
    ):
        reader.read(0, 10)


def test_what_interrupts_reading_is_not_swallowed(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_arguments: object) -> memoryview:
        raise KeyboardInterrupt

    monkeypatch.setattr(MemberReader, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        LoadedModel(archive, RuntimeOptions(n_ctx=64))


def test_a_model_that_llama_cpp_refuses_is_refused_out_of_an_archive_too(source: Path, tmp_path: Path) -> None:
    content = source.read_bytes().replace(b"llama.block_count", b"llama.block_kount")
    (tmp_path / "odd.gguf").write_bytes(content)
    archive = pack_archive(tmp_path / "odd.gguf", tmp_path / "odd.edgepack").output
    with pytest.raises(ModelRuntimeError, match="refuses"):
        LoadedModel(archive, RuntimeOptions(n_ctx=64))


@settings(max_examples=25, deadline=None)
@given(places=st.lists(st.tuples(st.floats(0, 1.01), st.integers(0, 3 << 20)), max_size=12))
def test_bytes_at_any_place_are_those_of_the_file(source: Path, archive: Path, places: list[tuple[float, int]]) -> None:
    content = source.read_bytes()
    with open_archive(archive) as opened, closing(MemberReader(opened, opened.main, threads=2)) as reader:
        for share, size in places:
            offset = int(share * len(content))
            piece = reader.read(offset, size)
            assert piece == content[offset : offset + piece.nbytes]
            assert (piece.nbytes > 0) == (offset < len(content) and size > 0)


class Letters:
    """A source of 1000 bytes, given 7 at a time."""

    content = bytes(range(250)) * 4
    bytes = 1000

    def read(self, offset: int, size: int) -> memoryview:
        return memoryview(self.content)[offset : offset + min(size, 7)]


def test_c_code_reads_seeks_and_meets_the_end() -> None:
    import ctypes

    c = ctypes.CDLL(None)
    c.fread.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]
    c.fread.restype = ctypes.c_size_t
    c.fseek.argtypes, c.ftell.argtypes, c.ftell.restype = (
        [ctypes.c_void_p, ctypes.c_long, ctypes.c_int], [ctypes.c_void_p], ctypes.c_long,
    )  # fmt: skip
    room = ctypes.create_string_buffer(2000)
    with virtual_file(Letters()) as file:
        assert (c.fseek(file.pointer, 0, 2), c.ftell(file.pointer)) == (0, 1000)
        assert c.fseek(file.pointer, -2000, 1) != 0
        c.fseek(file.pointer, 900, 0)
        assert c.fread(room, 1, 2000, file.pointer) == 100
        assert room.raw[:100] == Letters.content[900:]
        assert isinstance(file, VirtualFile)
        assert file.problem is None
