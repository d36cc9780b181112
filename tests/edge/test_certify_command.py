"""`edgepack certify` puts the proof inside; `edgepack validate` replays it without the original."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from edgepack.cli import execute as run
from edgepack.edge.fidelity.certificate_file import certificate_path
from edgepack.gguf import keys
from edgepack.gguf.reader import read_header

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(books: Path, tmp_path_factory: pytest.TempPathFactory, eval_text: str) -> Path:
    folder = tmp_path_factory.mktemp("certified")
    (folder / "text.txt").write_text(eval_text[:12_000], encoding="utf-8")
    (folder / "LICENSE.txt").write_text("free", encoding="utf-8")
    q4 = folder / "q4.gguf"
    assert run(["export", str(books), "--target", "gguf-q4km", "-o", str(q4)]) == 0
    assert run(["pack", str(q4), "-o", str(folder / "plain.edgepack"), "--include", str(folder / "LICENSE.txt")]) == 0
    return folder


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPACK_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def called(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any], str]:
    capfd.readouterr()
    code = run([*map(str, arguments), "--json"])
    out, err = capfd.readouterr()
    return code, json.loads(out) if out else {}, err


def certify(folder: Path, books: Path, capfd: pytest.CaptureFixture[str], source: str, out: str) -> dict[str, Any]:
    options = ["--text", folder / "text.txt", "--ctx", "128", "--stored-tokens", "600", "--no-floor"]
    code, told, err = called(capfd, "certify", folder / source, "--reference", books, "-o", folder / out, *options)
    assert (code, err) == (0, "")
    return told


def test_an_archive_carries_its_proof_and_its_other_members(
    folder: Path, books: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    told = certify(folder, books, capfd, "plain.edgepack", "certified.edgepack")
    assert told["tokens"] >= 600
    assert told["certificate_bytes"] <= 0.01 * told["base_logits_bytes"] + 4000  # + header, on so few positions
    assert told["certificate_bytes"] / told["tokens"] <= 300
    code, inside, _ = called(capfd, "inspect", folder / "certified.edgepack")
    assert code == 0
    assert {"certificate.edgeref", "LICENSE.txt"} < {member["name"] for member in inside["members"]}
    code, replayed, err = called(capfd, "validate", folder / "certified.edgepack", "--min-agreement", "0.8")
    assert (code, err) == (0, "")
    assert replayed["reproduced"]
    assert replayed["same_choice"] >= 0.99
    assert replayed["mean_kl"] == pytest.approx(replayed["publisher"]["mean_kl"], rel=0.05)
    assert replayed["publisher"]["figures"]["tokens"] >= 600


def test_the_gguf_states_the_figures_and_its_tensors_are_untouched(
    folder: Path, books: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    certify(folder, books, capfd, "q4.gguf", "stated.gguf")
    before, after = read_header(folder / "q4.gguf"), read_header(folder / "stated.gguf")
    stated = json.loads(after.get(keys.CERTIFICATE))
    assert 0.8 < stated["figures"]["top1_agreement"] < 1
    assert {key: value for key, value in after.metadata.items() if key != keys.CERTIFICATE} == dict(before.metadata)
    data = [(folder / name).read_bytes()[header.data_start :] for name, header in
            (("q4.gguf", before), ("stated.gguf", after))]  # fmt: skip
    assert data[0] == data[1]
    assert certificate_path(folder / "stated.gguf").is_file()
    code, replayed, _err = called(capfd, "validate", folder / "stated.gguf")
    assert code == 0
    assert replayed["reproduced"]


def test_a_certificate_of_another_file_is_refused_with_both_digests(
    folder: Path, books: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    certify(folder, books, capfd, "q4.gguf", "mine.gguf")
    other = folder / "other.gguf"
    other.write_bytes((folder / "q4.gguf").read_bytes())
    certificate_path(other).write_bytes(certificate_path(folder / "mine.gguf").read_bytes())
    code, _told, err = called(capfd, "validate", other)
    assert code == 1
    assert "was made for a GGUF with SHA-256" in err
    assert err.count("\n") == 1


def test_a_stored_reference_judges_other_files_without_the_original(
    folder: Path, books: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    certify(folder, books, capfd, "q4.gguf", "judge.gguf")
    stored = certificate_path(folder / "judge.gguf")
    arguments = [folder / "q4.gguf", "--reference", stored, "--no-floor", "--text"]
    code, told, _err = called(capfd, "validate", *arguments, folder / "text.txt", "--max-kl", "0.1")
    assert code == 0
    assert 0.8 < told["top1_agreement"] < 1
    code, _told, err = called(capfd, "validate", *arguments, folder / "LICENSE.txt")
    assert code == 2
    assert "made on another text" in err


def test_without_certificate_or_reference_it_says_what_is_missing(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("plain.edgepack", "q4.gguf"):
        code, told, err = called(capfd, "validate", folder / name)
        assert (code, told) == (2, {})
        assert "give --reference" in err
