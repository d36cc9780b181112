"""Makes Ed25519 keys and signs archives; judging signatures is left to `trust.signatures`, whom to trust to `trust`.

A signature is over the SHA-256 of the index record, which holds the digest of every other record and of the
header. `cryptography` does the arithmetic; where the bytes stand is left to `records`.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from edgepack.errors import IntegrityError, UsageError
from edgepack.files.output import atomic_output, check_output
from edgepack.packaging import records
from edgepack.packaging.archive import open_unjudged
from edgepack.packaging.format import MAX_SIGNATURES, Footer
from edgepack.packaging.trust.signatures import SignatureState, judge_record, read_key_file, signed_message

if TYPE_CHECKING:
    from pathlib import Path


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


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """The private key in the PEM file `path`.

    Raises:
        UsageError: it is not there or not an Ed25519 private key without a password.
    """
    try:
        key = serialization.load_pem_private_key(read_key_file(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"key '{path}': expected an Ed25519 private key in PEM without a password")
    return key


def sign_archive(path: Path, key: Path, out: Path | None = None) -> str:
    """Add a signature to an archive; one of the same key is replaced.

    Args:
        path: the archive.
        key: PEM file of the private key.
        out: where the signed archive goes; in place by default, atomically.

    Returns:
        the public key in hexadecimal.

    Raises:
        ArchiveError, IntegrityError: the archive cannot be opened, or another key's signature on it is wrong.
        UsageError: the key cannot be read, or there are too many signatures.
    """
    private = load_private_key(key)
    public = _raw(private.public_key())
    with open_unjudged(path) as archive:  # a wrong signature of the same key is mended by signing again
        kept = [pair for pair in archive.signatures if pair[0] != public]
        if judge_record(archive.index_record, kept).state is SignatureState.INVALID:
            raise IntegrityError(f"'{path}': another key's signature is wrong: it stays wrong beside a right one")
        if len(kept) >= MAX_SIGNATURES:
            raise UsageError(f"'{path}': it has {len(kept)} signatures, the limit is {MAX_SIGNATURES}")
        record = records.encode_signatures([*kept, (public, private.sign(signed_message(archive.index_record)))])
        footer = Footer(archive.footer.index_offset, archive.footer.index_bytes, len(record))
        with path.open("rb") as source, atomic_output(out or path, footer.file_bytes) as target:
            shutil.copyfileobj(source, target, 1 << 20)
            target.truncate(footer.index_offset + footer.index_bytes)
            target.seek(0, os.SEEK_END)
            target.write(record + footer.encode())
    return public.hex()
