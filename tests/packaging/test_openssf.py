"""OpenSSF's model-signing format: what edgepack signs its library takes, and every change of a file is told."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING

import pytest

from edgepack.cli import execute as run
from edgepack.errors import CheckFailedError, UsageError
from edgepack.packaging.signing import generate_key
from edgepack.packaging.trust.openssf import SIGNATURE, Signer, generate_ec_key, sign, verify

if TYPE_CHECKING:
    from pathlib import Path

model_signing = pytest.importorskip("model_signing")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files of which the folder's signature speaks, and keys beside it."""
    generate_ec_key(tmp_path / "author")
    generate_ec_key(tmp_path / "other")
    made = tmp_path / "model"
    (made / "sub").mkdir(parents=True)
    (made / "weights.bin").write_bytes(b"weights" * 1000)
    (made / "sub" / "config.json").write_text("{}")
    sign(made, tmp_path / "author", made / SIGNATURE)
    return made


def signer(folder: Path, name: str = "author") -> Signer:
    return Signer(folder.with_name(f"{name}.pub"))


def test_a_signed_folder_verifies_here_and_by_the_library_itself(folder: Path) -> None:
    verify(folder, folder / SIGNATURE, signer(folder))
    hashing = model_signing.hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=True)
    config = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=folder.with_name("author.pub"))
    config.set_hashing_config(hashing).verify(folder, folder / SIGNATURE)


def test_every_change_of_a_file_is_told_by_its_name(folder: Path) -> None:
    weights = (folder / "weights.bin").read_bytes()
    (folder / "weights.bin").write_bytes(weights[:-1] + b"x")
    with pytest.raises(CheckFailedError, match=r"weights\.bin"):
        verify(folder, folder / SIGNATURE, signer(folder))
    (folder / "weights.bin").write_bytes(weights)
    (folder / ".gitattributes").write_text("* filter=evil\n")  # nothing is left out of what was signed
    with pytest.raises(CheckFailedError, match=r"\.gitattributes"):
        verify(folder, folder / SIGNATURE, signer(folder))
    (folder / ".gitattributes").unlink()
    (folder / "sub" / "config.json").unlink()
    with pytest.raises(CheckFailedError, match=r"sub/config\.json"):
        verify(folder, folder / SIGNATURE, signer(folder))


def test_another_key_and_another_kind_of_key_are_refused(folder: Path) -> None:
    with pytest.raises(CheckFailedError):
        verify(folder, folder / SIGNATURE, signer(folder, "other"))
    generate_key(folder.with_name("ed"))
    with pytest.raises(UsageError, match="P-256"):
        verify(folder, folder / SIGNATURE, signer(folder, "ed"))
    with pytest.raises(UsageError, match="P-256"):
        sign(folder, folder.with_name("ed"), folder / SIGNATURE)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"a": 1}', b"\xff\xfe", b"null"])
def test_a_signature_that_is_none_is_refused_in_one_line(folder: Path, content: bytes) -> None:
    (folder / SIGNATURE).write_bytes(content)
    with pytest.raises(CheckFailedError) as refusal:
        verify(folder, folder / SIGNATURE, signer(folder))
    assert "\n" not in str(refusal.value)


def test_every_flipped_character_of_a_bundle_is_refused_or_means_the_same(folder: Path) -> None:
    raw = (folder / SIGNATURE).read_text()
    said = json.loads(raw)
    said["dsseEnvelope"]["signatures"][0]["sig"] = said["dsseEnvelope"]["signatures"][0]["sig"][::-1]
    (folder / SIGNATURE).write_text(json.dumps(said))
    with pytest.raises(CheckFailedError):
        verify(folder, folder / SIGNATURE, signer(folder))
    said = json.loads(raw)
    payload = said["dsseEnvelope"]["payload"]
    said["dsseEnvelope"]["payload"] = payload[:100] + ("A" if payload[100] != "A" else "B") + payload[101:]
    (folder / SIGNATURE).write_text(json.dumps(said))
    with pytest.raises(CheckFailedError):
        verify(folder, folder / SIGNATURE, signer(folder))


def test_a_keyless_bundle_needs_everything_that_is_on_this_machine(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wish in ({"identity": "a"}, {"identity": "a", "issuer": "b"}, {}):
        with pytest.raises(UsageError, match="--trust-config"):
            Signer(**wish)

    def refused(*_arguments: object, **_options: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refused)
    (folder.parent / "trust.json").write_text("{}")
    with pytest.raises(CheckFailedError):
        verify(folder, folder / SIGNATURE, Signer(None, "a@b", "https://issuer", folder.parent / "trust.json"))


def test_the_commands_sign_and_verify_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, key = tmp_path / "m.bin", tmp_path / "key"
    file.write_bytes(b"model")
    assert run(["keygen", str(key), "--openssf"]) == 0
    assert run(["sign", str(file), "--openssf-key", str(key)]) == 0
    assert run(["verify", str(file), "--openssf-key", f"{key}.pub"]) == 0
    assert "every file is as" in capsys.readouterr().err
    file.write_bytes(b"mode1")
    assert run(["verify", str(file), "--openssf-key", f"{key}.pub"]) == 1
    assert run(["sign", str(file)]) == 2
    assert run(["keygen", str(key), "--openssf"]) == 2
