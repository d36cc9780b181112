"""`edgepack extract`: members or single tensors out of an archive; the work is `edgepack.extract`'s."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepack.cli.output import force_option, json_option, note, print_json, terminal_progress
from edgepack.cli.trust_options import trust_options

if TYPE_CHECKING:
    from edgepack.packaging.trust.policy import TrustPolicy


@click.command("extract")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path(), help="The folder to write into [.].")
@click.option("--members", is_flag=True, help="Every member but the model itself.")
@trust_options
@force_option
@json_option
def command(
    file: Path, names: tuple[str, ...], output: Path, members: bool, trusted: TrustPolicy, force: bool, as_json: bool
) -> None:
    """Take members (by name) or tensors of the model (by name, as raw blocks in NAME.bin) out of the archive FILE.

    Only the chunks that hold them are read.
    """
    from edgepack.api.extracting import extract

    found = extract(file, names, output, members=members, trusted=trusted, force=force, progress=terminal_progress)
    if as_json:
        print_json({"extracted": [{"output": str(e.output), "bytes": e.bytes, "sha256": e.sha256} for e in found]})
        return
    for entry in found:
        note(f"{entry.output}: {entry.bytes} bytes, sha256 {entry.sha256}")
