"""`edgepack sign`: a signature added to an archive; the work is `edgepack.sign`'s."""

from __future__ import annotations

from pathlib import Path

import click

from edgepack.cli.output import force_option, json_option, note, print_json


@click.command("sign")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--key", required=True, type=click.Path(path_type=Path), help="The private key that keygen made.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The signed archive [in place].")
@force_option
@json_option
def command(file: Path, key: Path, output: Path | None, force: bool, as_json: bool) -> None:
    """Sign the archive FILE; `edgepack verify --trusted KEY.pub` checks it."""
    from edgepack.api.checking import sign

    result = sign(file, key, output, force=force)
    if as_json:
        print_json({"output": str(result.output), "key": result.key})
        return
    note(f"{result.output}: signed by ed25519 {result.key}")
