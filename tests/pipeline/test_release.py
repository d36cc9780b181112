"""A release is a folder that appears whole, checks itself with common tools, and says nothing that was not measured."""

from __future__ import annotations

import hashlib
import json
import subprocess
from typing import TYPE_CHECKING

import pytest

import edgepack
from edgepack.cli import execute as run
from edgepack.errors import CheckFailedError, UsageError
from edgepack.packaging.archive import open_archive
from edgepack.packaging.pack import pack_archive
from edgepack.pipeline.release.plots import AGREEMENT, DIVERGENCE

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def certified(books: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certified")
    text = folder / "words.txt"
    text.write_text("It was a dark night, and nobody came to the door of the old house. " * 40)
    edgepack.export(books, target="gguf-q4km", output=folder / "m.edgepack")
    options = edgepack.ScoringOptions(ctx=32, max_chunks=4)
    return edgepack.certify(
        folder / "m.edgepack", books, folder / "novel-Q4_K_M.edgepack", text=text, stored_tokens=40, scoring=options
    ).output  # fmt: skip


@pytest.fixture(scope="module")
def folder(certified: Path) -> Path:
    """Released with everything."""
    key = edgepack.generate_key(certified.with_name("author")).private
    licence = certified.with_name("words.txt")
    edgepack.release(certified, certified.with_name("out"), gguf=True, key=key, license_file=licence,
                     base_model="org/novel")  # fmt: skip
    return certified.with_name("out")


def test_every_file_is_in_the_sums_and_the_sums_are_right(folder: Path) -> None:
    lines = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())
    names = {path.name for path in folder.iterdir()}
    assert names - set(lines) == {"SHA256SUMS", "SHA256SUMS.sig"}
    assert lines == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in lines}
    assert {"README.md", "config.json", "LICENSE", "Modelfile", "derivation.intoto.json", DIVERGENCE, AGREEMENT,
            "novel-Q4_K_M.edgepack", "novel-Q4_K_M.gguf", "publisher.pub"} == set(lines)  # fmt: skip


def test_the_signature_of_the_sums_is_openssls(folder: Path) -> None:
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "publisher.pub", "-rawin", "-in", "SHA256SUMS",
               "-sigfile", "SHA256SUMS.sig"]  # fmt: skip
    assert subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0
    checked = edgepack.verify(folder / "novel-Q4_K_M.edgepack", trusted=[folder / "publisher.pub"])
    assert checked.ok


def test_the_gguf_is_the_archives(folder: Path, certified: Path) -> None:
    with open_archive(certified) as archive:
        assert hashlib.sha256((folder / "novel-Q4_K_M.gguf").read_bytes()).hexdigest() == archive.main.sha256


def test_the_cards_numbers_are_the_certificates(folder: Path, certified: Path) -> None:
    card = (folder / "README.md").read_text()
    figures = edgepack.replay(certified).stored.facts["figures"]
    assert f"{100 * figures['top1_agreement']:.2f} %" in card
    assert f"| Mean KL divergence | {figures['mean_kl']:.3g} nats |" in card
    assert f"| Tokens scored | {figures['tokens']:,} |" in card
    front = card.split("---")[1]
    assert json.loads(front.partition("base_model: ")[2].splitlines()[0]) == "org/novel"
    assert 'license_link: "LICENSE"' in front
    for name in ("edgepack run", "llama-cli -m", "ollama create", "lms import", DIVERGENCE, AGREEMENT):
        assert name in card
    assert edgepack.provenance(certified).sources[0].sha256 in card


def test_plots_are_svg_that_stand_alone(folder: Path) -> None:
    from xml.etree import ElementTree as ET

    for name in (DIVERGENCE, AGREEMENT):
        root = ET.fromstring((folder / name).read_text())
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert len(root) > 5


def test_without_a_certificate_the_card_says_that_nothing_was_measured(
    books: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edgepack.export(books, target="gguf-q8", output=tmp_path / "m.gguf")
    pack_archive(tmp_path / "m.gguf", tmp_path / "m.edgepack")
    assert run(["release", str(tmp_path / "m.edgepack"), "-o", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().err
    assert "no certificate" in told
    assert "no derivation" in told
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Not measured" in card
    assert "%" not in card.partition("## What is inside")[0]
    assert not (tmp_path / "out" / "m.gguf").exists()
    assert "edgepack unpack m.edgepack" in card


def test_nothing_is_left_of_what_fails(certified: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "d.edgepack"
    raw = bytearray(certified.read_bytes())
    raw[len(raw) // 2] ^= 1
    damaged.write_bytes(raw)
    with pytest.raises(CheckFailedError):
        edgepack.release(damaged, tmp_path / "out")
    with pytest.raises(UsageError):
        edgepack.release(certified, tmp_path / "out", license_file=tmp_path / "absent")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").touch()
    with pytest.raises(UsageError, match="empty or not there"):
        edgepack.release(certified, tmp_path / "taken")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.edgepack", "taken"]


def test_the_folder_is_signed_in_openssfs_format_too(certified: Path, tmp_path: Path) -> None:
    pytest.importorskip("model_signing")
    from edgepack.packaging.trust.openssf import SIGNATURE, Signer, generate_ec_key, verify

    generate_ec_key(tmp_path / "ec")
    edgepack.release(certified, tmp_path / "out", openssf_key=tmp_path / "ec")
    verify(tmp_path / "out", tmp_path / "out" / SIGNATURE, Signer(tmp_path / "ec.pub"))
    assert SIGNATURE in (tmp_path / "out" / "README.md").read_text()
    with (tmp_path / "out" / "README.md").open("a") as card:
        card.write("more")
    with pytest.raises(CheckFailedError, match=r"README\.md"):
        verify(tmp_path / "out", tmp_path / "out" / SIGNATURE, Signer(tmp_path / "ec.pub"))
