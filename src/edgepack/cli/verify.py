"""`edgepack verify`: every byte of an archive against its digests, and who signed it; `edgepack.verify` works."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepack.cli.output import json_option, note, print_json, terminal_progress
from edgepack.cli.trust_options import trust_options
from edgepack.errors import IntegrityError

if TYPE_CHECKING:
    from edgepack.packaging.trust.openssf import Signer
    from edgepack.packaging.trust.policy import TrustPolicy


@click.command("verify")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--deep", is_flag=True, help="Also restore everything in memory and check chunks, tensors and files.")
@click.option(
    "--openssf",
    "signature",
    type=click.Path(path_type=Path),
    metavar="SIG",
    help="Check this OpenSSF signature of FILE, any file or folder, instead.",
)
@click.option(
    "--openssf-key", type=click.Path(path_type=Path), metavar="PUB", help="With --openssf: who signed, a key,"
)
@click.option("--identity", default="", help="or the identity of a keyless bundle,")
@click.option("--issuer", default="", help="its issuer,")
@click.option(
    "--trust-config",
    type=click.Path(path_type=Path),
    metavar="JSON",
    help="and sigstore's trust configuration: nothing is asked of a network.",
)
@trust_options
@json_option
def command(
    file: Path,
    deep: bool,
    signature: Path | None,
    openssf_key: Path | None,
    identity: str,
    issuer: str,
    trust_config: Path | None,
    trusted: TrustPolicy,
    as_json: bool,
) -> int:
    """Check FILE (an archive): exit code 0 when it is whole, 1 with the damaged places named.

    A GGUF carries no digests: of one, only the structure is checked.
    """
    if signature is not None or openssf_key is not None or identity:
        from edgepack.packaging.trust.openssf import Signer

        return _openssf(file, signature, Signer(openssf_key, identity, issuer, trust_config), as_json=as_json)
    from edgepack.api.checking import key_list, verify

    result = verify(file, deep=deep, trusted=trusted, progress=terminal_progress)
    if as_json:
        print_json(result.json())
        return int(not result.ok)
    for problem in result.problems:
        note(f"{problem.where}: {problem.what}")
    if not result.ok:
        count = len(result.problems)
        raise IntegrityError(f"'{file}': {count} problem{'s' if count > 1 else ''}")
    if result.rollback:
        note(f"note: {result.rollback}")
    signed = result.signature
    note(f"{file}: sound, {signed.state.value}{key_list(signed)}" if signed else f"{file}: sound in its structure")
    return 0


def _openssf(target: Path, signature: Path | None, signer: Signer, *, as_json: bool) -> int:
    from edgepack.packaging.trust.openssf import signature_path, verify

    where = signature_path(target) if signature is None else signature
    verify(target, where, signer)
    who = str(signer.key) if signer.key is not None else f"{signer.identity} ({signer.issuer})"
    if as_json:
        print_json({"ok": True, "signature": {"format": "openssf", "signer": who}})
    else:
        note(f"{target}: every file is as {who} signed it ({where.name})")
    return 0
