"""SHA-256 of files against hashlib's own, with lengths that no block divides."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING

import pytest

from edgepack import file_digest
from edgepack.file_digest import file_sha256, stream_sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CONTENT = bytes(range(256)) * 5


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_digest, "_BLOCK_BYTES", 100)


def test_a_files_digest_is_that_of_its_bytes_and_all_of_them_are_told(tmp_path: Path) -> None:
    path, told = tmp_path / "f", list[int]()
    path.write_bytes(CONTENT)

    @contextmanager
    def progress(_label: str, total: int, _unit: str = "B") -> Iterator[Callable[[int], object]]:
        assert total == len(CONTENT)
        yield told.append

    assert file_sha256(path, "x", progress) == hashlib.sha256(CONTENT).hexdigest()
    assert sum(told) == len(CONTENT)


@pytest.mark.parametrize("length", [None, 0, 1, 100, 101, len(CONTENT), len(CONTENT) + 50])
def test_a_streams_digest_covers_the_length_asked_for_and_leaves_the_rest(length: int | None) -> None:
    stream = BytesIO(b"skipped" + CONTENT)
    stream.seek(7)
    expected = CONTENT if length is None else CONTENT[:length]
    assert stream_sha256(stream, length) == hashlib.sha256(expected).digest()
    assert stream.read() == CONTENT[len(expected) :]
