"""Ed25519 signatures of an index record: read keys, judge who signed. Making them is left to `packaging.signing`.

`cryptography` is imported only where there is a signature or a key to look at: most files carry none.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from edgepack.errors import UsageError
from edgepack.files.source import read_small
from edgepack.packaging.format import SIGNING_CONTEXT, sha256

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

KEY_BYTES = 32  # of a raw Ed25519 public key (RFC 8032, 5.1.5)
MAX_KEY_FILE_BYTES = 1 << 16


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


def read_key_file(path: Path) -> bytes:
    """At most 2¹⁶ bytes of a key's file; raises UsageError where it cannot be read."""
    return read_small(path, most_bytes=MAX_KEY_FILE_BYTES, label=f"key '{path}'")


def load_public_key(path: Path) -> bytes:
    """The 32 bytes of the public key in the PEM file `path` (`edgepack keygen` writes it as KEY.pub).

    Raises:
        UsageError: it is not there or not an Ed25519 public key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = serialization.load_pem_public_key(read_key_file(path))
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"key '{path}': expected an Ed25519 public key in PEM, such as keygen's KEY.pub")
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def signed_message(index_record: bytes) -> bytes:
    """What a signature is over: the context and the SHA-256 of the whole index record (FORMAT.md)."""
    return SIGNING_CONTEXT + sha256(index_record)


def judge_record(
    index_record: bytes,
    signatures: Sequence[tuple[bytes, bytes]],
    trusted: Sequence[bytes] = (),
    *,
    asked: bool = False,
) -> SignatureReport:
    """What signatures of an index record say.

    Args:
        index_record: the whole record, already checked.
        signatures: (public key, signature) pairs.
        trusted: public keys of 32 bytes; none when nobody said whom to trust.
        asked: whether somebody said whom to trust, though none of the keys counts any more.

    Returns:
        `INVALID` if any signature is wrong, whoever else signed.
    """
    if not signatures:
        return SignatureReport(SignatureState.UNSIGNED, ())
    message = signed_message(index_record)
    valid = [key for key, signature in signatures if _is_valid(key, signature, message)]
    keys = tuple(key.hex() for key in valid)
    if len(valid) < len(signatures):
        return SignatureReport(SignatureState.INVALID, keys)
    if not trusted and not asked:
        return SignatureReport(SignatureState.SIGNED, keys)
    state = SignatureState.TRUSTED if set(trusted) & set(valid) else SignatureState.STRANGER
    return SignatureReport(state, keys)


def _is_valid(key: bytes, signature: bytes, message: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
