"""Signatures: unsigned, wrongly signed, signed by a stranger and trusted are four different answers."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from edgepack.errors import UsageError
from edgepack.packaging import records
from edgepack.packaging.archive import open_archive, open_unjudged
from edgepack.packaging.format import SIGNING_CONTEXT, Footer, sha256
from edgepack.packaging.pack import pack_archive
from edgepack.packaging.restore.unpack import unpack_archive
from edgepack.packaging.signing import generate_key, load_private_key, sign_archive
from edgepack.packaging.trust.signatures import SignatureState, judge_record, load_public_key
from edgepack.packaging.verify import verify_archive

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@pytest.fixture
def archive(gguf: Path) -> Path:
    path = gguf.with_suffix(".edgepack")
    pack_archive(gguf, path)
    return path


def state(path: Path, trusted: Sequence[Path] = ()) -> SignatureState:
    with open_unjudged(path) as archive:
        return judge_record(archive.index_record, archive.signatures, [load_public_key(key) for key in trusted]).state


def test_the_states_are_told_apart(archive: Path, tmp_path: Path) -> None:
    for name in ("author", "stranger"):
        generate_key(tmp_path / name)
    author, stranger = tmp_path / "author.pub", tmp_path / "stranger.pub"
    assert state(archive) is state(archive, [author]) is SignatureState.UNSIGNED
    sign_archive(archive, tmp_path / "author")
    assert state(archive) is SignatureState.SIGNED
    assert state(archive, [author]) is state(archive, [stranger, author]) is SignatureState.TRUSTED
    assert state(archive, [stranger]) is SignatureState.STRANGER
    assert len({state.value for state in SignatureState}) == len(SignatureState)


def test_a_signed_archive_is_as_sound_as_before_and_restores_the_same(
    archive: Path, gguf: Path, tmp_path: Path
) -> None:
    generate_key(tmp_path / "key")
    sign_archive(archive, tmp_path / "key", tmp_path / "signed.edgepack")
    assert state(archive) is SignatureState.UNSIGNED
    assert verify_archive(tmp_path / "signed.edgepack", deep=True) == ()
    unpack_archive(tmp_path / "signed.edgepack", tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").read_bytes() == gguf.read_bytes()


def test_several_keys_sign_and_the_same_key_signs_once(archive: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        generate_key(tmp_path / name)
        sign_archive(archive, tmp_path / name)
    size = archive.stat().st_size
    sign_archive(archive, tmp_path / "a")
    assert archive.stat().st_size == size
    assert state(archive, [tmp_path / "a.pub"]) is state(archive, [tmp_path / "b.pub"]) is SignatureState.TRUSTED


def resign(path: Path, pairs: list[tuple[bytes, bytes]]) -> None:
    """Put these signatures, right or wrong, behind the index."""
    with open_unjudged(path) as archive:
        footer = archive.footer
    content = path.read_bytes()[: footer.index_offset + footer.index_bytes]
    record = records.encode_signatures(pairs)
    path.write_bytes(content + record + Footer(footer.index_offset, footer.index_bytes, len(record)).encode())


def test_a_wrong_signature_is_invalid_whoever_else_signed(archive: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        generate_key(tmp_path / name)
        sign_archive(archive, tmp_path / name)
    with open_archive(archive) as opened:
        first, (key, signature) = opened.signatures
    resign(archive, [first, (key, signature[:-1] + bytes([signature[-1] ^ 1]))])
    assert state(archive, [tmp_path / "a.pub"]) is SignatureState.INVALID
    resign(archive, [(key, first[1])])
    assert state(archive, [tmp_path / "b.pub"]) is SignatureState.INVALID
    resign(archive, [(b"\xff" * 32, signature)])
    assert state(archive) is SignatureState.INVALID


def test_a_signature_does_not_fit_another_archive(archive: Path, gguf: Path, tmp_path: Path) -> None:
    generate_key(tmp_path / "key")
    sign_archive(archive, tmp_path / "key")
    with open_archive(archive) as opened:
        signatures = opened.signatures
    pack_archive(gguf, tmp_path / "other.edgepack", level=3)
    resign(tmp_path / "other.edgepack", signatures)
    assert state(tmp_path / "other.edgepack", [tmp_path / "key.pub"]) is SignatureState.INVALID


def test_the_signature_is_ed25519_over_the_documented_message(archive: Path, tmp_path: Path) -> None:
    generate_key(tmp_path / "key")
    sign_archive(archive, tmp_path / "key")
    public = serialization.load_pem_public_key((tmp_path / "key.pub").read_bytes())
    assert isinstance(public, Ed25519PublicKey)
    with open_archive(archive) as opened:
        ((_key, signature),) = opened.signatures
        record = opened.read_at(opened.footer.index_offset, opened.footer.index_bytes)
    public.verify(signature, SIGNING_CONTEXT + sha256(record))  # raises when it is wrong


def test_keys_are_private_and_never_overwritten(tmp_path: Path) -> None:
    public = generate_key(tmp_path / "key")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert load_public_key(tmp_path / "key.pub").hex() == public
    with pytest.raises(UsageError, match="never overwritten"):
        generate_key(tmp_path / "key")
    (tmp_path / "key").unlink()
    with pytest.raises(UsageError, match="never overwritten"):
        generate_key(tmp_path / "key")


def test_what_is_not_a_key_is_refused(tmp_path: Path) -> None:
    generate_key(tmp_path / "key")
    (tmp_path / "noise").write_bytes(b"noise")
    for path in (tmp_path / "noise", tmp_path / "absent", tmp_path / "key.pub"):
        with pytest.raises(UsageError, match="key '"):
            load_private_key(path)
    for path in (tmp_path / "noise", tmp_path / "absent", tmp_path / "key"):
        with pytest.raises(UsageError, match="key '"):
            load_public_key(path)
