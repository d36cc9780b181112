"""Damage: any flipped bit and any truncation is found, named, and leaves no file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from edgepack.errors import ArchiveError, EdgepackError, IntegrityError
from edgepack.gguf.types import GGMLType
from edgepack.packaging.archive import open_archive
from edgepack.packaging.pack import pack_archive
from edgepack.packaging.restore.unpack import unpack_archive
from edgepack.packaging.signing import generate_key, sign_archive
from edgepack.packaging.trust.signatures import SignatureState, judge_record
from edgepack.packaging.verify import verify_archive

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def archive(write_gguf: Callable[..., Path], tmp_path: Path) -> Path:
    """A small signed archive with two members and a dictionary's worth of everything."""
    gguf = write_gguf(
        {"a.weight": (8, 512, GGMLType.Q5_K), "b.weight": (4, 96, GGMLType.Q8_0), "c.weight": (1, 33, GGMLType.F32)}
    )
    (tmp_path / "LICENSE").write_text("Apache-2.0\n" * 20)
    pack_archive(gguf, tmp_path / "a.edgepack", include=[tmp_path / "LICENSE"])
    generate_key(tmp_path / "key")
    sign_archive(tmp_path / "a.edgepack", tmp_path / "key")
    return tmp_path / "a.edgepack"


def places(path: Path) -> list[tuple[range, str]]:
    """(bytes, how their damage must be named) for the whole archive."""
    with open_archive(path) as archive:
        named = []
        for member in archive.members:
            named += [
                (range(chunk.offset, chunk.offset + chunk.record_bytes), f"chunk {chunk.number} ")
                for chunk in archive.chunks(member)
            ]
            named.append((range(member.record_offset, member.record_offset + 1), f"member '{member.name}'"))
        footer = archive.footer
        named.append((range(64), "header"))
        named.append((range(footer.index_offset, footer.index_offset + footer.index_bytes), "index"))
        end = footer.index_offset + footer.index_bytes
        named.append((range(end, end + footer.signature_bytes), "signatures"))
    return named


@pytest.mark.slow
def test_ten_thousand_random_flipped_bits_are_all_found_and_named(archive: Path) -> None:
    content, named, rng = archive.read_bytes(), places(archive), np.random.default_rng(6)
    with archive.open("r+b") as stream:
        for position, bit in zip(rng.integers(0, len(content), 10_000), rng.integers(0, 8, 10_000), strict=True):
            stream.seek(position)
            stream.write(bytes([content[position] ^ 1 << int(bit)]))
            stream.flush()
            problems = verify_archive(archive, threads=1)
            assert problems, f"bit {bit} of byte {position} was not found"
            text = " ".join(f"{problem.where} {problem.what}" for problem in problems)
            expected = [name for place, name in named if position in place]
            assert not expected or any(name in text for name in expected) or "magic" in text, (position, text)
            stream.seek(position)
            stream.write(content[position : position + 1])
    assert verify_archive(archive) == ()


def test_unpack_finds_damage_too_and_leaves_no_file(archive: Path, tmp_path: Path) -> None:
    """Every byte that matters for the GGUF; what belongs to other members is left to verify."""
    content, rng = archive.read_bytes(), np.random.default_rng(7)
    with open_archive(archive) as opened:
        other = opened.members[1]
        spared = range(other.record_offset, opened.footer.index_offset)
        record = range(opened.main.record_offset, opened.main.record_offset + 16 + len(opened.main.name) + 32)
    for position in rng.integers(0, len(content), 300):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(rng.integers(0, 8))
        archive.write_bytes(damaged)
        if position in spared or position in record:
            continue
        with pytest.raises((IntegrityError, ArchiveError)):
            unpack_archive(archive, tmp_path / "out.gguf", threads=1)
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


@pytest.mark.slow
def test_truncation_at_every_offset_of_the_index_and_behind_is_refused(archive: Path, tmp_path: Path) -> None:
    content = archive.read_bytes()
    with open_archive(archive) as opened:
        index_offset = opened.footer.index_offset
    for end in [*range(0, index_offset, 97), *range(index_offset, len(content))]:
        with archive.open("r+b") as stream:
            stream.truncate(end)
        with pytest.raises(EdgepackError) as caught:
            open_archive(archive)
        assert caught.value.exit_code == 7
        assert "\n" not in str(caught.value)
        archive.write_bytes(content)


def test_appended_bytes_are_refused(archive: Path) -> None:
    archive.write_bytes(archive.read_bytes() + b"\0")
    with pytest.raises(ArchiveError, match="footer"):
        open_archive(archive)


def test_signatures_survive_nothing_but_the_very_archive(archive: Path) -> None:
    with open_archive(archive) as opened:
        assert judge_record(opened.index_record, opened.signatures).state is SignatureState.SIGNED
