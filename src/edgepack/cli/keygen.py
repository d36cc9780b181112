"""`edgepack keygen`: a key to sign archives with; the work is `edgepack.packaging.signing`'s."""

from __future__ import annotations

from pathlib import Path

import click

from edgepack.cli.output import json_option, note, print_json


@click.command("keygen")
@click.argument("key", type=click.Path(path_type=Path))
@json_option
def command(key: Path, as_json: bool) -> None:
    """Make an Ed25519 key: the private half in the file KEY, the public half in KEY.pub."""
    from edgepack.packaging.signing import generate_key, public_path

    public = generate_key(key)
    if as_json:
        print_json({"private": str(key), "public": str(public_path(key)), "key": public})
        return
    note(f"{key}: private, keep it secret")
    note(f"{public_path(key)}: public, give it to those who verify (ed25519 {public})")
