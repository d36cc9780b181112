"""`edgepack patch`: the next version of a file, from the old one and a patch; `edgepack.patch` works."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepack.cli.output import force_option, json_option, note, print_json, terminal_progress
from edgepack.cli.trust_options import trust_options

if TYPE_CHECKING:
    from edgepack.packaging.trust.policy import TrustPolicy


@click.command("patch")
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("patch", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The new file [its own name, beside OLD].")
@trust_options
@force_option
@json_option
def command(old: Path, patch: Path, output: Path | None, trusted: TrustPolicy, force: bool, as_json: bool) -> None:
    """Make the new file from OLD and PATCH, bit for bit and verified."""
    from edgepack.api.updates import patch as apply
    from edgepack.quantities import format_duration, format_size

    result = apply(old, patch, output, trusted=trusted, force=force, progress=terminal_progress)
    if as_json:
        print_json(
            {"output": str(result.output), "bytes": result.bytes, "sha256": result.sha256, "seconds": result.seconds}
        )
        return
    note(f"{result.output}: {format_size(result.bytes)}, verified, in {format_duration(result.seconds)}")
