"""`edgepack keygen`: a key to sign archives with; the work is `edgepack.generate_key`'s."""

from __future__ import annotations

from pathlib import Path

import click

from edgepack.cli.output import json_option, note, print_json


@click.command("keygen")
@click.argument("key", type=click.Path(path_type=Path))
@click.option("--openssf", is_flag=True, help="A P-256 key, for signatures in OpenSSF's model-signing format.")
@json_option
def command(key: Path, openssf: bool, as_json: bool) -> None:
    """Make an Ed25519 key: the private half in the file KEY, the public half in KEY.pub."""
    if openssf:
        _openssf(key, as_json=as_json)
        return
    from edgepack.api.checking import generate_key

    made = generate_key(key)
    if as_json:
        print_json({"private": str(made.private), "public": str(made.public), "key": made.key})
        return
    note(f"{made.private}: private, keep it secret")
    note(f"{made.public}: public, give it to those who verify (ed25519 {made.key})")


def _openssf(key: Path, *, as_json: bool) -> None:
    from edgepack.packaging.trust.openssf import generate_ec_key

    generate_ec_key(key)
    public = key.with_name(f"{key.name}.pub")
    if as_json:
        print_json({"private": str(key), "public": str(public)})
        return
    note(f"{key}: private (P-256), keep it secret")
    note(f"{public}: public, give it to those who verify")
