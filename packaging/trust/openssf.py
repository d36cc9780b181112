"""Signatures in OpenSSF's model-signing format, beside our own: made and checked by its own library, without a network.

A signature is a sigstore bundle over the digests of a file, or of every file in a folder. Keys are elliptic curves
(P-256, P-384, P-521); a keyless bundle is checked against an identity, its issuer and a trust configuration that lies
on this machine. The library (`model-signing`, the extra `edgepack[sigstore]`) is imported only when it is asked for.
Our own signatures, which stand inside an archive, are `signatures`'.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.errors import CheckFailedError, DependencyError, UsageError
from edgepack.files.claim import claimed_output
from edgepack.files.output import atomic_output
from edgepack.packaging.trust.signatures import read_key_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

SIGNATURE = "model.sig"  # of a folder, inside it; OpenSSF's own default
MAX_BUNDLE_BYTES = 16 << 20
_CURVES = ("secp256r1", "secp384r1", "secp521r1")


@dataclass(frozen=True)
class Signer:
    """Who must have signed: a public key, or an identity of a keyless bundle.

    Attributes:
        key: PEM of an elliptic-curve public key; None for an identity.
        identity: such as an e-mail address or the URL of a workflow.
        issuer: of the identity, such as https://accounts.google.com.
        trust_config: sigstore's ClientTrustConfig as JSON: certificates and logs to trust. Without it the library
            would ask a network for them.
    """

    key: Path | None = None
    identity: str = ""
    issuer: str = ""
    trust_config: Path | None = None

    def __post_init__(self) -> None:
        keyless = (bool(self.identity), bool(self.issuer), self.trust_config is not None)
        if (self.key is not None and any(keyless)) or (self.key is None and not all(keyless)):
            raise UsageError("openssf: expected a public key, or --identity, --issuer and --trust-config together")


def signature_path(target: Path) -> Path:
    """Where a signature lies by default: FILE.sig beside a file, `model.sig` in a folder."""
    return target / SIGNATURE if target.is_dir() else target.with_name(f"{target.name}.sig")


def generate_ec_key(path: Path) -> None:
    """Write a new P-256 key (PEM, PKCS 8, readable by its owner only) and its public half as PATH.pub.

    Where a run was interrupted between the two, the public half of the key that is there is written.

    Raises:
        UsageError: the public half, or something else than such a key, is there already.
    """
    public = path.with_name(f"{path.name}.pub")
    if os.path.lexists(public):
        raise UsageError(f"'{public}': is there already; keys are never overwritten")
    with claimed_output(public), claimed_output(path, force=True):
        _write_ec_public(public, _read_ec_key(path) if os.path.lexists(path) else _write_ec_key(path))


def _write_ec_key(path: Path) -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with atomic_output(path, mode=0o600) as stream:
        stream.write(private)
    return key


def _read_ec_key(path: Path) -> EllipticCurvePrivateKey:
    """The key of a run that was interrupted before it wrote the public half."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_private_key(read_key_file(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UsageError(f"'{path}': is there already; keys are never overwritten")
    return key


def _write_ec_public(public: Path, key: EllipticCurvePrivateKey) -> None:
    from cryptography.hazmat.primitives import serialization

    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    with atomic_output(public) as stream:
        stream.write(key.public_key().public_bytes(serialization.Encoding.PEM, spki))


def sign(target: Path, key: Path, signature: Path) -> None:
    """Sign a file, or every file of a folder.

    Args:
        target: the file or folder.
        key: PEM of a private key on an elliptic curve, without a password.
        signature: where the bundle goes; inside a folder it is left out of what it signs.

    Raises:
        DependencyError: the library is not installed.
        UsageError: no such target, or a key of another kind.
    """
    library = _library()
    _check_curve(key, private=True)
    _check_target(target)
    config = library.signing.Config().use_elliptic_key_signer(private_key=key)
    config.set_hashing_config(_hashing(library, target, signature))
    with tempfile.TemporaryDirectory(prefix="edgepack-") as folder:  # nothing may come into what is being hashed
        made = Path(folder) / "signature"
        config.sign(target, made)
        content = made.read_bytes()
    with atomic_output(signature) as stream:
        stream.write(content)


def verify(target: Path, signature: Path, signer: Signer) -> None:
    """Check that `signer` signed exactly what lies at `target`: no file changed, missing or more.

    Raises:
        DependencyError: the library is not installed.
        UsageError: no such target or signature, or a key of another kind.
        CheckFailedError: it is another's signature, or over other bytes; the text says which files differ.
    """
    library = _library()
    _check_target(target)
    if not signature.is_file() or signature.stat().st_size > MAX_BUNDLE_BYTES:
        raise UsageError(f"signature '{signature}': expected a file of at most {MAX_BUNDLE_BYTES} bytes")
    from cryptography.exceptions import InvalidSignature
    from sigstore.errors import Error as SigstoreError

    # What the library raises over a bundle that is none, or another's: it has no errors of its own.
    try:
        config = _verifier(library, signer).set_hashing_config(_hashing(library, target, signature))
        config.verify(target, signature)
    except (ValueError, KeyError, TypeError, AttributeError, InvalidSignature, SigstoreError) as error:
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckFailedError(f"'{target}': OpenSSF signature '{signature.name}': {told:.400}") from None


def _verifier(library: Any, signer: Signer) -> Any:
    config = library.verifying.Config()
    if signer.key is not None:
        _check_curve(signer.key, private=False)
        return config.use_elliptic_key_verifier(public_key=signer.key)
    return config.use_sigstore_verifier(
        identity=signer.identity, oidc_issuer=signer.issuer, trust_config=signer.trust_config
    )


def _hashing(library: Any, target: Path, signature: Path) -> Any:
    """Every file, by SHA-256; the bundle itself where it lies inside."""
    inside = target.is_dir() and signature.resolve().is_relative_to(target.resolve())
    ignored = [signature.resolve().relative_to(target.resolve())] if inside else []
    return library.hashing.Config().set_ignored_paths(paths=ignored, ignore_git_paths=False)


def _check_target(target: Path) -> None:
    if not target.exists():
        raise UsageError(f"'{target}': no such file or folder")


def _check_curve(path: Path, *, private: bool) -> None:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    raw = read_key_file(path)
    try:
        key: Any = (
            serialization.load_pem_private_key(raw, password=None)
            if private
            else serialization.load_pem_public_key(raw)
        )
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if getattr(getattr(key, "curve", None), "name", "") not in _CURVES:
        kind = "private" if private else "public"
        raise UsageError(f"key '{path}': expected a {kind} key on P-256, P-384 or P-521 in PEM (keygen --openssf)")


def _library() -> Any:
    try:
        import model_signing
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"OpenSSF signatures: '{error.name}' is not installed, use pip install 'edgepack[sigstore]'"
        ) from None
    return model_signing
