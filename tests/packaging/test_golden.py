"""Archives and patches of every released format version stay readable, for ever.

`tools/make_golden_archive.py` made the files; a new version adds files and rows, none is ever replaced.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from edgepack.gguf.types import GGMLType
from edgepack.packaging.archive import open_archive
from edgepack.packaging.coding import planes
from edgepack.packaging.coding.layouts import LAYOUTS, layout_of
from edgepack.packaging.delta.patch import apply_patch
from edgepack.packaging.restore.stream import unpack_stream
from edgepack.packaging.restore.unpack import unpack_archive
from edgepack.packaging.trust.signatures import SignatureState, judge_record, load_public_key
from edgepack.packaging.verify import verify_archive

GOLDEN = Path(__file__).resolve().parent / "golden"
# version → SHA-256 of the archive, of the model that it restores, of what the patch makes from that
VERSIONS = {
    "1.0": (
        "525ebfb355a598d42966fe31e1a5e2c8e96d2ca55df936c36160aa3c8b8f910e",
        "7fd1c74b9bccdff0efe494bc9d118182d7bd1c81d942064e0760c64fbe6351e8",
        "35b9febadf3f73bff9a9567d3a337b5615f4d0ec907bcb112ca18e1636537805",
    ),
}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("version", VERSIONS)
def test_the_golden_files_were_not_touched_and_are_sound(version: str) -> None:
    archive = GOLDEN / f"archive-{version}.edgepack"
    assert digest(archive) == VERSIONS[version][0]
    assert verify_archive(archive, deep=True) == ()
    with open_archive(archive) as opened:
        assert f"{opened.version[0]}.{opened.version[1]}" == version
        key = load_public_key(archive.with_suffix(".pub"))
        assert judge_record(opened.index_record, opened.signatures, [key]).state is SignatureState.TRUSTED


@pytest.mark.parametrize("version", VERSIONS)
def test_the_golden_archive_restores_the_same_bytes_as_ever(version: str, tmp_path: Path) -> None:
    archive, expected = GOLDEN / f"archive-{version}.edgepack", VERSIONS[version][1]
    assert unpack_archive(archive, tmp_path / "file.gguf").sha256 == expected == digest(tmp_path / "file.gguf")
    with archive.open("rb") as stream:
        unpack_stream(stream, tmp_path / "pipe.gguf")
    assert digest(tmp_path / "pipe.gguf") == expected
    with open_archive(archive) as opened:
        assert opened.read_member("README.7.md").startswith(b"# Adapter 7\n")


@pytest.mark.parametrize("version", VERSIONS)
def test_the_golden_patch_makes_the_same_bytes_as_ever(version: str, tmp_path: Path) -> None:
    unpack_archive(GOLDEN / f"archive-{version}.edgepack", tmp_path / "old.gguf")
    apply_patch(tmp_path / "old.gguf", GOLDEN / f"archive-{version}.edgepatch", tmp_path / "new.gguf")
    assert digest(tmp_path / "new.gguf") == VERSIONS[version][2]


def test_the_golden_archive_holds_every_layout_a_dictionary_and_a_signature() -> None:
    """Else it would hold little readable."""
    with open_archive(GOLDEN / "archive-1.0.edgepack") as opened:
        kinds = {total.kind // 16 for total in opened.index.totals}
        assert {layout_of(kind).id for kind in GGMLType} <= kinds
        assert opened.index.dictionaries
        assert opened.signatures


@pytest.mark.parametrize(
    ("identifier", "expected"),
    [
        (256, "d4be8819bb5f11be"), (257, "99689a9c0bb9b15c"), (258, "7a27cb4497c12479"), (259, "e72e7d09c37d75ed"),
        (260, "b15da4234b53f30c"), (261, "6b396349f5debc77"),
    ],
)  # fmt: skip
def test_layouts_of_grids_split_blocks_as_ever(identifier: int, expected: str) -> None:
    layout = LAYOUTS[identifier]
    raw = np.random.default_rng(identifier).integers(0, 256, 5 * layout.block_bytes, np.uint8).tobytes()
    streams = b"".join(stream.tobytes() for stream in planes.split(layout, raw))
    assert hashlib.sha256(streams).hexdigest()[:16] == expected
