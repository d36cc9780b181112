"""`edgepack diff`: a small patch from one version of a file to the next; the work is `edgepack.diff`'s."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepack.cli.output import force_option, json_option, note, print_json, terminal_progress
from edgepack.cli.trust_options import trust_options

if TYPE_CHECKING:
    from edgepack.packaging.trust.policy import TrustPolicy


@click.command("diff")
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The patch [NEW.edgepatch].")
@click.option("--level", type=click.IntRange(1, 19), default=10, show_default=True, help="zstd level.")
@trust_options
@force_option
@json_option
def command(
    old: Path, new: Path, output: Path | None, level: int, trusted: TrustPolicy, force: bool, as_json: bool
) -> None:
    """Write a patch that makes NEW from OLD, bit for bit; both are archives, or GGUFs, or any files."""
    from edgepack.api.updates import diff
    from edgepack.quantities import format_duration, format_size

    result = diff(old, new, output, level=level, trusted=trusted, force=force, progress=terminal_progress)
    if as_json:
        print_json(
            {
                "output": str(result.output),
                "bytes": result.bytes,
                "new_bytes": result.new_bytes,
                "copied_bytes": result.copied_bytes,
                "sha256": result.sha256,
                "seconds": result.seconds,
            }
        )
        return
    copied = 100 * result.copied_bytes / max(1, result.new_bytes)
    note(
        f"{result.output}: {format_size(result.bytes)} for a file of {format_size(result.new_bytes)}, "
        f"{copied:.1f} % of it copied, in {format_duration(result.seconds)}"
    )
