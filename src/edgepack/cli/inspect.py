"""`edgepack inspect`: what an archive or a GGUF holds; the values are `edgepack.inspect`'s."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepack.cli.output import json_option, print_json, say, terminal_progress
from edgepack.errors import IntegrityError

if TYPE_CHECKING:
    from edgepack.packaging.inspection import Inspection


@click.command("inspect")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--tensors", is_flag=True, help="List the tensors of the model too.")
@json_option
def command(file: Path, tensors: bool, as_json: bool) -> int:
    """Show what FILE (an archive or a GGUF) holds and what each kind of stream gained; an archive's index suffices.

    Exit code 1 for an archive that is wrongly signed.
    """
    from edgepack.api.checking import inspect
    from edgepack.packaging.trust.signatures import SignatureState

    found = inspect(file, tensors=tensors, progress=terminal_progress)
    if as_json:
        print_json(found.json())
    else:
        _print(file, found)
    if found.archive is not None and found.archive.signature == SignatureState.INVALID.value:
        raise IntegrityError(f"'{file}': the archive is {found.archive.signature}")
    return 0


def _row(name: str, stored: int, plain: int, note: str = "") -> str:
    from edgepack.quantities import format_size

    share = f"{100 * stored / plain:.1f} %" if plain else ""
    return f"  {name:34} {format_size(plain):>9} → {format_size(stored):>9}  {share:>7}  {note}".rstrip()


def _print(file: Path, found: Inspection) -> None:
    facts = [f"format {found.format_version}"]
    if found.archive is not None:
        facts += [f"{found.archive.chunks} chunks", found.archive.signature]
    say(f"{file}: {', '.join(facts)}")
    say(_row("in all", found.bytes, found.original_bytes))
    say("members")
    for member in found.members:
        say(_row(member.name, member.stored_bytes, member.bytes, f"sha256 {member.sha256[:16]}…"))
    say("streams")
    for stream in found.streams:
        gain = f"dictionary {stream.dictionary} gained {stream.dictionary_gain} B" if stream.dictionary else ""
        say(_row(stream.kind, stream.stored_bytes, stream.bytes, gain))
    for tensor in found.tensors or ():
        say(_row(f"{tensor.name} {tensor.type}", tensor.stored_bytes, tensor.bytes))
