"""Ed25519 signatures of archives: keys made and read, an archive signed, its signatures judged.

A signature is over the SHA-256 of the index record, which holds the digest of every other record and of the
header. `cryptography` does the arithmetic; where the bytes stand is left to `records`.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from edgepack.errors import CheckFailedError, UsageError
from edgepack.files.output import atomic_output, check_output
from edgepack.packaging import records
from edgepack.packaging.archive import Archive, open_archive
from edgepack.packaging.format import MAX_SIGNATURES, SIGNING_CONTEXT, Footer, sha256

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_MAX_KEY_FILE_BYTES = 1 << 16


class SignatureState(Enum):
    """What the signatures of an archive say; the value is the word that people read."""

    UNSIGNED = "unsigned"
    INVALID = "wrongly signed"
    STRANGER = "signed by a stranger"
    SIGNED = "signed"  # rightly, and nobody said whom to trust
    TRUSTED = "signed by a trusted key"


@dataclass(frozen=True)
class SignatureReport:
    """The verdict, and the public keys (hexadecimal) whose signatures are right."""

    state: SignatureState
    keys: tuple[str, ...]


def public_path(key: Path) -> Path:
    """Where the public half of the key file `key` stands."""
    return key.with_name(f"{key.name}.pub")


def generate_key(path: Path) -> str:
    """Write a new private key (PEM, PKCS 8, readable by its owner only) and its public half beside it.

    Returns:
        the public key in hexadecimal.

    Raises:
        UsageError: either file is there already; keys are never overwritten.
    """
    check_output(path, force=True)
    for target in (path, public_path(path)):
        if target.exists():
            raise UsageError(f"'{target}': is there already; keys are never overwritten")
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = public_pem(key)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(private)
    public_path(path).write_bytes(public)
    return _raw(key.public_key()).hex()


def public_pem(key: Ed25519PrivateKey) -> bytes:
    """The public half of a key, as PEM."""
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _raw(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def _read_key_file(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(_MAX_KEY_FILE_BYTES)
    except OSError as error:
        raise UsageError(f"key '{path}': {error.strerror}") from None


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """The private key in the PEM file `path`.

    Raises:
        UsageError: it is not there or not an Ed25519 private key without a password.
    """
    try:
        key = serialization.load_pem_private_key(_read_key_file(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"key '{path}': expected an Ed25519 private key in PEM without a password")
    return key


def load_public_key(path: Path) -> bytes:
    """The 32 bytes of the public key in the PEM file `path` (`edgepack keygen` writes it as KEY.pub).

    Raises:
        UsageError: it is not there or not an Ed25519 public key.
    """
    try:
        key = serialization.load_pem_public_key(_read_key_file(path))
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"key '{path}': expected an Ed25519 public key in PEM, such as keygen's KEY.pub")
    return _raw(key)


def _message(index_record: bytes) -> bytes:
    return SIGNING_CONTEXT + sha256(index_record)


def sign_archive(path: Path, key: Path, out: Path | None = None) -> str:
    """Add a signature to an archive; one of the same key is replaced.

    Args:
        path: the archive.
        key: PEM file of the private key.
        out: where the signed archive goes; in place by default, atomically.

    Returns:
        the public key in hexadecimal.

    Raises:
        ArchiveError, IntegrityError: the archive cannot be opened.
        UsageError: the key cannot be read, or there are too many signatures.
    """
    private = load_private_key(key)
    public = _raw(private.public_key())
    with open_archive(path) as archive:
        kept = [pair for pair in archive.signatures if pair[0] != public]
        if len(kept) >= MAX_SIGNATURES:
            raise UsageError(f"'{path}': it has {len(kept)} signatures, the limit is {MAX_SIGNATURES}")
        record = records.encode_signatures([*kept, (public, private.sign(_message(archive.index_record)))])
        footer = Footer(archive.footer.index_offset, archive.footer.index_bytes, len(record))
        with path.open("rb") as source, atomic_output(out or path, footer.file_bytes) as target:
            shutil.copyfileobj(source, target, 1 << 20)
            target.truncate(footer.index_offset + footer.index_bytes)
            target.seek(0, os.SEEK_END)
            target.write(record + footer.encode())
    return public.hex()


def judge_signatures(archive: Archive, trusted: Sequence[bytes] = ()) -> SignatureReport:
    """What the signatures of an opened archive say, as `judge_record`."""
    return judge_record(archive.index_record, archive.signatures, trusted)


def require_trusted(index_record: bytes, signatures: Sequence[tuple[bytes, bytes]], trusted: Sequence[bytes]) -> None:
    """Raise CheckFailedError unless a trusted key signed; nothing is asked where `trusted` is empty."""
    state = judge_record(index_record, signatures, trusted).state
    if trusted and state is not SignatureState.TRUSTED:
        raise CheckFailedError(f"the archive is {state.value}")


def judge_record(
    index_record: bytes, signatures: Sequence[tuple[bytes, bytes]], trusted: Sequence[bytes] = ()
) -> SignatureReport:
    """What signatures of an index record say.

    Args:
        index_record: the whole record, already checked.
        signatures: (public key, signature) pairs.
        trusted: public keys of 32 bytes; none when nobody said whom to trust.

    Returns:
        `INVALID` if any signature is wrong, whoever else signed.
    """
    message = _message(index_record)
    valid = [key for key, signature in signatures if _is_valid(key, signature, message)]
    keys = tuple(key.hex() for key in valid)
    if not signatures:
        return SignatureReport(SignatureState.UNSIGNED, ())
    if len(valid) < len(signatures):
        return SignatureReport(SignatureState.INVALID, keys)
    if not trusted:
        return SignatureReport(SignatureState.SIGNED, keys)
    state = SignatureState.TRUSTED if set(trusted) & set(valid) else SignatureState.STRANGER
    return SignatureReport(state, keys)


def _is_valid(key: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
