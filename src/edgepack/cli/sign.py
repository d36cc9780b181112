"""`edgepack sign`: a signature added to an archive; the work is `edgepack.sign`'s."""

from __future__ import annotations

from pathlib import Path

import click

from edgepack.cli.output import force_option, json_option, note, print_json
from edgepack.errors import UsageError


@click.command("sign")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--key", type=click.Path(path_type=Path), help="The private key that keygen made.")
@click.option(
    "--openssf-key",
    type=click.Path(path_type=Path),
    metavar="KEY",
    help="Sign in OpenSSF's format instead, into FILE.sig (in a folder, model.sig): keygen --openssf.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The signed archive [in place], or the .sig.")
@force_option
@json_option
def command(
    file: Path, key: Path | None, openssf_key: Path | None, output: Path | None, force: bool, as_json: bool
) -> None:
    """Sign the archive FILE; `edgepack verify --trusted KEY.pub` checks it.

    With --openssf-key, FILE may be any file or a folder; the signature stands beside it (or in the folder).
    """
    from edgepack.api.checking import sign

    if (key is None) == (openssf_key is None):
        raise UsageError("sign: expected one of --key and --openssf-key")
    if openssf_key is not None:
        _openssf(file, openssf_key, output, force=force, as_json=as_json)
        return
    assert key is not None

    result = sign(file, key, output, force=force)
    if as_json:
        print_json({"output": str(result.output), "key": result.key})
        return
    note(f"{result.output}: signed by ed25519 {result.key}")


def _openssf(target: Path, key: Path, output: Path | None, *, force: bool, as_json: bool) -> None:
    from edgepack.files.claim import check_output
    from edgepack.packaging.trust.openssf import sign, signature_path

    signature = signature_path(target) if output is None else output
    inputs = [key] if target.is_dir() else [target, key]
    check_output(signature, inputs=inputs, force=force)  # no lock: it would lie in a folder that is being signed
    sign(target, key, signature)
    if as_json:
        print_json({"output": str(signature)})
        return
    note(f"{signature}: OpenSSF signature of {target}")
