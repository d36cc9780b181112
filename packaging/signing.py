"""Makes Ed25519 keys and signs archives; judging signatures is left to `trust.signatures`, whom to trust to `trust`.

A signature is over the SHA-256 of the index record, which holds the digest of every other record and of the
header. `cryptography` does the arithmetic; where the bytes stand is left to `records`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from edgepack.errors import ArchiveError, IntegrityError, UsageError
from edgepack.files.claim import claimed_output
from edgepack.files.output import atomic_output
from edgepack.files.source import FileState, check_unchanged
from edgepack.packaging import records
from edgepack.packaging.archive import open_unjudged
from edgepack.packaging.format import MAX_SIGNATURES, Footer
from edgepack.packaging.trust.signatures import SignatureState, judge_record, read_key_file, signed_message

if TYPE_CHECKING:
    from pathlib import Path

_COPY_BYTES = 1 << 20
_PATIENCE_SECONDS = 600.0  # of a second run that signs the same archive: copying one takes minutes at most


def public_path(key: Path) -> Path:
    """Where the public half of the key file `key` stands."""
    return key.with_name(f"{key.name}.pub")


def generate_key(path: Path) -> str:
    """Write a new private key (PEM, PKCS 8, readable by its owner only) and its public half beside it.

    Where a run was killed between the two, the public half of the key that is there is written.

    Returns:
        the public key in hexadecimal.

    Raises:
        UsageError: either file is there already; keys are never overwritten.
    """
    if os.path.lexists(public_path(path)):
        raise UsageError(f"'{public_path(path)}': is there already; keys are never overwritten")
    with claimed_output(public_path(path)), claimed_output(path, force=True):
        return _write_public(path, load_private_key(path)) if os.path.lexists(path) else _write_pair(path)


def _write_pair(path: Path) -> str:
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with atomic_output(path, mode=0o600) as stream:
        stream.write(private)
    try:
        return _write_public(path, key)
    except BaseException:
        path.unlink()  # nobody has seen it yet
        raise


def _write_public(path: Path, key: Ed25519PrivateKey) -> str:
    """Write the public half of `key` beside the file `path`; gives it in hexadecimal."""
    with atomic_output(public_path(path)) as stream:
        stream.write(public_pem(key))
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


def sign_archive(path: Path, key: Path, out: Path | None = None, *, force: bool = False) -> str:
    """Add a signature to an archive; one of the same key is replaced.

    In place, a second run waits for the first, so that neither signature is lost; a link is followed to the archive.

    Args:
        path: the archive.
        key: PEM file of the private key.
        out: where the signed archive goes; in place by default, atomically.
        force: replace another file that is there already.

    Returns:
        the public key in hexadecimal.

    Raises:
        ArchiveError, IntegrityError: the archive cannot be opened, or another key's signature on it is wrong.
        UsageError: the key cannot be read, or there are too many signatures.
    """
    private = load_private_key(key)
    if out is None:
        path = path.resolve()
        claim = claimed_output(path, inputs=[key], force=True, wait_seconds=_PATIENCE_SECONDS)
    else:
        claim = claimed_output(out, inputs=[path, key], force=force)
    with claim:
        return _signed(path, private, out or path)


def _state_of(path: Path) -> FileState:
    try:
        return FileState.of(path)
    except OSError as error:
        raise ArchiveError(f"'{path}': cannot be read: {error.strerror}") from None


def _signed(path: Path, private: Ed25519PrivateKey, out: Path) -> str:
    """Write the archive at `path` with one more signature to `out`; the public key in hexadecimal."""
    public, before = _raw(private.public_key()), _state_of(path)
    with open_unjudged(path) as archive:  # a wrong signature of the same key is mended by signing again
        kept = [pair for pair in archive.signatures if pair[0] != public]
        if judge_record(archive.index_record, kept).state is SignatureState.INVALID:
            raise IntegrityError(f"'{path}': another key's signature is wrong: it stays wrong beside a right one")
        if len(kept) >= MAX_SIGNATURES:
            raise UsageError(f"'{path}': it has {len(kept)} signatures, the limit is {MAX_SIGNATURES}")
        record = records.encode_signatures([*kept, (public, private.sign(signed_message(archive.index_record)))])
        footer = Footer(archive.footer.index_offset, archive.footer.index_bytes, len(record))
        with atomic_output(out, footer.file_bytes) as target:
            end = footer.index_offset + footer.index_bytes
            for start in range(0, end, _COPY_BYTES):
                target.write(archive.read_at(start, min(_COPY_BYTES, end - start)))
            target.write(record + footer.encode())
            check_unchanged(path, before, ArchiveError)
    return public.hex()
