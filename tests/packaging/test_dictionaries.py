"""Dictionaries: kept only where they make the archive smaller, stored once, used to restore."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.packaging.archive import open_archive
from edgepack.packaging.inspection import inspect_archive
from edgepack.packaging.pack import pack_archive
from edgepack.packaging.restore.stream import unpack_stream
from edgepack.packaging.restore.unpack import unpack_archive
from edgepack.packaging.verify import verify_archive

if TYPE_CHECKING:
    from pathlib import Path


def model_cards(folder: Path, count: int) -> list[Path]:
    """Many short texts with much in common, as the cards of adapters have."""
    paths = []
    for number in range(count):
        path = folder / f"README.{number}.md"
        path.write_text(
            f"# Adapter {number}\n\nThis adapter was trained on corpus {number * 7919 % 1000} and is licensed under the "
            "Apache License, Version 2.0. It is meant for research; please read the model card of the base model "
            f"before you use it.\n\n## Evaluation\n\nPerplexity on the held-out text: {5 + number / 37:.4f}\n"
        )
        paths.append(path)
    return paths


def test_a_dictionary_that_gains_is_used_and_one_that_does_not_is_not(gguf: Path, tmp_path: Path) -> None:
    cards = model_cards(tmp_path, 60)
    with_dictionary, without = tmp_path / "a.edgepack", tmp_path / "b.edgepack"
    saved = (
        pack_archive(gguf, without, include=cards, dictionary=False).bytes
        - pack_archive(gguf, with_dictionary, include=cards).bytes
    )
    with open_archive(with_dictionary) as archive:
        description = inspect_archive(archive).json()
        assert archive.read_member("README.7.md") == cards[7].read_bytes()
    gains = {entry["kind"]: entry["dictionary_gain"] for entry in description["streams"] if entry["dictionary"]}
    assert set(gains) == {"text"}
    assert [entry["kind"] for entry in description["dictionaries"]] == ["text"]
    assert saved == gains["text"] - description["dictionaries"][0]["bytes"] - 40 > 2000
    assert verify_archive(with_dictionary, deep=True) == ()


def test_archives_with_dictionaries_restore_from_files_and_pipes(gguf: Path, tmp_path: Path) -> None:
    cards = model_cards(tmp_path, 60)
    archive = tmp_path / "a.edgepack"
    pack_archive(gguf, archive, include=cards)
    unpack_archive(archive, tmp_path / "file.gguf")
    with archive.open("rb") as stream:
        unpack_stream(stream, tmp_path / "card.md", member="README.33.md")
    assert (tmp_path / "file.gguf").read_bytes() == gguf.read_bytes()
    assert (tmp_path / "card.md").read_bytes() == cards[33].read_bytes()


def test_damage_in_a_dictionary_is_named(gguf: Path, tmp_path: Path) -> None:
    archive = tmp_path / "a.edgepack"
    pack_archive(gguf, archive, include=model_cards(tmp_path, 60))
    content = bytearray(archive.read_bytes())
    content[200] ^= 4
    archive.write_bytes(content)
    assert [problem.where for problem in verify_archive(archive)] == ["dictionary 1"]
    assert "dictionary 1" in {problem.where for problem in verify_archive(archive, deep=True)}
