"""Patches: small where little changed, exact always, refused where they do not belong."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.errors import ArchiveError, EdgepackError, IntegrityError, UsageError
from edgepack.gguf.types import GGMLType
from edgepack.packaging.archive import open_archive
from edgepack.packaging.delta import patch_format
from edgepack.packaging.delta.diff import diff_files
from edgepack.packaging.delta.patch import apply_patch
from edgepack.packaging.delta.patch_format import Operation, OperationType, PatchHead
from edgepack.packaging.delta.pieces import fingerprint
from edgepack.packaging.pack import pack_archive
from edgepack.packaging.verify import verify_archive

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TENSORS = {
    "token_embd.weight": (300, 2048, GGMLType.Q6_K),
    "blk.0.attn_q.weight": (1500, 2048, GGMLType.Q5_K),
    "blk.0.norm.weight": (1, 512, GGMLType.F32),
}
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


@pytest.fixture
def versions(write_gguf: Callable[..., Path]) -> tuple[Path, Path]:
    """A GGUF, and the same model with a longer chat template (its tensors stand elsewhere in the file)."""
    old = write_gguf(TENSORS, "old.gguf")
    return old, write_gguf(TENSORS, "new.gguf", template=TEMPLATE * 50)


def patched(old: Path, new: Path, folder: Path) -> int:
    """Diff, patch, compare; returns the patch's length."""
    result = diff_files(old, new, folder / "p.edgepatch")
    assert result.bytes == (folder / "p.edgepatch").stat().st_size
    applied = apply_patch(old, folder / "p.edgepatch", folder / "patched")
    assert (folder / "patched").read_bytes() == new.read_bytes()
    assert applied.sha256 == result.sha256 == hashlib.sha256(new.read_bytes()).hexdigest()
    return result.bytes


def test_a_changed_template_costs_little_between_ggufs(versions: tuple[Path, Path], tmp_path: Path) -> None:
    assert patched(*versions, tmp_path) < 1500


def test_a_changed_template_costs_little_between_archives(versions: tuple[Path, Path], tmp_path: Path) -> None:
    archives = [path.with_suffix(".edgepack") for path in versions]
    for path, archive in zip(versions, archives, strict=True):
        pack_archive(path, archive)
    assert patched(archives[0], archives[1], tmp_path) < 3000


def test_a_base_gives_the_same_chunks_at_any_level(versions: tuple[Path, Path], tmp_path: Path) -> None:
    (old, new), base, update = versions, tmp_path / "base.edgepack", tmp_path / "update.edgepack"
    pack_archive(old, base, level=3)
    pack_archive(new, update, level=19, base=base)
    assert verify_archive(update, deep=True) == ()
    with open_archive(base) as before, open_archive(update) as after:
        kept = set(map(bytes, before.index.chunks["stored"])) & set(map(bytes, after.index.chunks["stored"]))
        assert len(kept) >= len(after.index.chunks) - 1
    assert patched(base, update, tmp_path) < 3000


def test_a_base_brings_its_dictionaries(gguf: Path, tmp_path: Path) -> None:
    cards = []
    for number in range(40):
        cards.append(tmp_path / f"README.{number}.md")
        cards[-1].write_text(f"# Adapter {number}\n" + "The licence of the base model holds for this adapter too. " * 6)
    base, update = tmp_path / "base.edgepack", tmp_path / "update.edgepack"
    pack_archive(gguf, base, include=cards)
    cards[3].write_text("# Adapter 3, revised\n" + "The licence of the base model holds for this adapter too. " * 6)
    pack_archive(gguf, update, include=cards, base=base)
    with open_archive(base) as before, open_archive(update) as after:
        assert len(before.index.dictionaries) == 1
        assert before.index.dictionaries == after.index.dictionaries
        assert after.read_member("README.3.md") == cards[3].read_bytes()


def test_a_damaged_base_is_refused(versions: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = versions
    base = tmp_path / "base.edgepack"
    pack_archive(old, base)
    content = bytearray(base.read_bytes())
    content[len(content) // 2] ^= 1
    base.write_bytes(content)
    with pytest.raises(IntegrityError, match="chunk"):
        pack_archive(new, tmp_path / "update.edgepack", base=base)
    assert not (tmp_path / "update.edgepack").exists()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.integers(0, 5000), edits=st.integers(0, 4))
def test_any_two_files_give_an_exact_patch(
    tmp_path_factory: pytest.TempPathFactory, seed: int, size: int, edits: int
) -> None:
    rng = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("any")
    content = rng.integers(0, 8, size, dtype=np.uint8).tobytes()
    (folder / "old").write_bytes(content)
    for _ in range(edits):
        at = int(rng.integers(0, len(content) + 1))
        content = content[:at] + rng.bytes(int(rng.integers(0, 50))) + content[at + int(rng.integers(0, 50)) :]
    (folder / "new").write_bytes(content)
    assert patched(folder / "old", folder / "new", folder) < size + 800


def test_the_default_output_is_the_new_name_beside_the_old_file(versions: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = versions
    diff_files(old, new, tmp_path / "p.edgepatch")
    with pytest.raises(UsageError, match="name the output with -o"):
        apply_patch(old, tmp_path / "p.edgepatch")
    content = new.read_bytes()
    new.unlink()
    assert apply_patch(old, tmp_path / "p.edgepatch").output == new
    assert new.read_bytes() == content


def test_a_patch_for_another_file_is_refused(versions: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = versions
    diff_files(old, new, tmp_path / "p.edgepatch")
    with pytest.raises(IntegrityError, match="made for another file"):
        apply_patch(new, tmp_path / "p.edgepatch", tmp_path / "out")
    content = bytearray(old.read_bytes())
    content[len(content) // 2] ^= 1  # not in the fingerprint: found by the digest of the result
    old.write_bytes(content)
    with pytest.raises(IntegrityError, match="is damaged"):
        apply_patch(old, tmp_path / "p.edgepatch", tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_every_flipped_bit_and_every_truncation_of_a_patch_is_found(
    versions: tuple[Path, Path], tmp_path: Path
) -> None:
    patch = tmp_path / "p.edgepatch"
    diff_files(*versions, patch)
    content = patch.read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        for bad in (bytes(damaged), content[:position]):
            patch.write_bytes(bad)
            with pytest.raises((IntegrityError, ArchiveError)):
                apply_patch(versions[0], patch, tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "old"
    path.write_bytes(bytes(range(256)) * 4)
    return path


def write_patch(old: Path, operations: list[tuple[Operation, bytes]], new_bytes: int, name: str = "new") -> Path:
    """A patch with a right digest around any operations."""
    with old.open("rb") as source:
        size = old.stat().st_size
        head = PatchHead(name, size, new_bytes, fingerprint(source.fileno(), size), bytes(32))
    body = head.encode() + b"".join(operation.encode() + payload for operation, payload in operations)
    path = old.with_name("hostile.edgepatch")
    path.write_bytes(body + hashlib.sha256(body).digest())
    return path


BOMB = patch_format.encode_piece(bytes(4 << 20), b"", 10)
END = (Operation(OperationType.END), b"")
HOSTILE = {
    "a copy beyond the old file": [(Operation(OperationType.COPY, 0, 1000, 100, 100), b""), END],
    "a copy at an offset that overflows": [(Operation(OperationType.COPY, 0, 2**64 - 1, 100, 100), b""), END],
    "more than the new file": [(Operation(OperationType.COPY, 0, 0, 500, 500), b"")] * 3,
    "a copy that changes its length": [(Operation(OperationType.COPY, 0, 0, 10, 20), b""), END],
    "a payload beyond the patch": [(Operation(OperationType.NEW, 5000, 0, 0, 10), b"x"), END],
    "a frame that inflates beyond its length": [(Operation(OperationType.NEW, len(BOMB), 0, 0, 100), BOMB), END],
    "no frame": [(Operation(OperationType.NEW, 5, 0, 0, 100), b"noise"), END],
    "huge lengths": [(Operation(OperationType.DELTA, 2**32 - 1, 0, 1000, 1000), b""), END],
    "no end": [(Operation(OperationType.COPY, 0, 0, 10, 10), b"")],
    "bytes behind the end": [END, (Operation(OperationType.COPY, 0, 0, 10, 10), b"")],
    "too little": [(Operation(OperationType.COPY, 0, 0, 10, 10), b""), END],
}


@pytest.mark.parametrize("operations", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_patches_are_refused(old: Path, operations: list[tuple[Operation, bytes]]) -> None:
    patch = write_patch(old, operations, 1000)
    with pytest.raises((ArchiveError, IntegrityError)):
        apply_patch(old, patch, old.with_name("out"))
    assert {path.name for path in old.parent.iterdir()} == {"old", "hostile.edgepatch"}


@pytest.mark.parametrize("name", ["../new", "/new", "a/b", "", "..", "c:new"])
def test_a_patch_cannot_name_an_output_elsewhere(old: Path, name: str) -> None:
    with pytest.raises(ArchiveError, match="name"):
        apply_patch(old, write_patch(old, [END], 0, name))


def test_what_is_not_a_patch_is_refused(old: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgepackError, match="expected"):
        apply_patch(old, old, tmp_path / "out")
    with pytest.raises(UsageError, match="no such file"):
        apply_patch(old, tmp_path / "absent", tmp_path / "out")
    with pytest.raises(UsageError, match="no such file"):
        diff_files(old, tmp_path / "absent", tmp_path / "out")
