"""`edgepack inspect`: what an archive or a GGUF holds; the values are `edgepack.packaging`'s."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgepack.cli.output import json_option, print_json, terminal_progress


@click.command("inspect")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--tensors", is_flag=True, help="List the tensors of the model too.")
@json_option
def command(file: Path, tensors: bool, as_json: bool) -> None:
    """Show what FILE (an archive or a GGUF) holds and what each kind of stream gained; an archive's index suffices."""
    description = _describe(file, tensors)
    if as_json:
        print_json(description)
    else:
        _print(file, description)


def _describe(file: Path, tensors: bool) -> dict[str, Any]:
    from edgepack.packaging.archive import open_archive
    from edgepack.packaging.inspection import describe_archive, describe_tensors
    from edgepack.packaging.plain_gguf import describe_gguf, describe_gguf_tensors, is_gguf

    if is_gguf(file):
        description = describe_gguf(file, terminal_progress)
        return description | ({"tensors": describe_gguf_tensors(file)} if tensors else {})
    with open_archive(file) as archive:
        description = describe_archive(archive)
        return description | ({"tensors": describe_tensors(archive, archive.main)} if tensors else {})


def _row(name: str, stored: int, plain: int, note: str = "") -> str:
    from edgepack.quantities import format_size

    share = f"{100 * stored / plain:.1f} %" if plain else ""
    return f"  {name:34} {format_size(plain):>9} → {format_size(stored):>9}  {share:>7}  {note}".rstrip()


def _print(file: Path, description: dict[str, Any]) -> None:
    facts = [f"format {description['format_version']}"]
    if "chunks" in description:
        facts += [f"{description['chunks']} chunks", "signed" if description["signed"] else "unsigned"]
    click.echo(f"{file}: {', '.join(facts)}")
    click.echo(_row("in all", description["bytes"], description["original_bytes"]))
    click.echo("members")
    for member in description["members"]:
        click.echo(_row(member["name"], member["stored_bytes"], member["bytes"], f"sha256 {member['sha256'][:16]}…"))
    click.echo("streams")
    for stream in description["streams"]:
        gain = f"dictionary {stream['dictionary']} gained {stream['dictionary_gain']} B" if stream["dictionary"] else ""
        click.echo(_row(stream["kind"], stream["stored_bytes"], stream["bytes"], gain))
    for tensor in description.get("tensors", []):
        click.echo(_row(f"{tensor['name']} {tensor['type']}", tensor["stored_bytes"], tensor["bytes"]))
