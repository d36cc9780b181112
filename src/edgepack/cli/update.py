"""`edgepack update`: the version of an archive that its server has now; the work is `edgepack.update`'s."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepack.cli.fetch import connections_option, offline_option, timeout_option
from edgepack.cli.output import json_option, note, print_json, terminal_progress
from edgepack.cli.trust_options import trust_options

if TYPE_CHECKING:
    from edgepack.packaging.trust.policy import TrustPolicy


@click.command("update")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--from", "sources", multiple=True, metavar="URL", help="Its addresses [where it was fetched].")
@click.option("--check", is_flag=True, help="Only say what differs.")
@connections_option
@timeout_option
@offline_option
@trust_options
@json_option
def command(
    file: Path,
    sources: tuple[str, ...],
    trusted: TrustPolicy,
    check: bool,
    connections: int,
    timeout: float,
    offline: bool,
    as_json: bool,
) -> None:
    """Bring the archive FILE up to date: only what differs is fetched, and it is said what that is.

    Keys that signed FILE must have signed the next version too, unless --trusted names others.
    """
    from edgepack.api.fetching import update
    from edgepack.quantities import format_size

    result = update(
        file, sources=sources, trusted=trusted, check=check, connections=connections, timeout=timeout,
        offline=offline, note=note, progress=terminal_progress,
    )  # fmt: skip
    if as_json:
        print_json(result.json())
        return
    if not result.differs:
        note(f"{file}: is the version that the server has")
        return
    for line in result.changes.lines():
        note(line)
    if result.fetched is None:
        note(f"{file}: the server has another version; {format_size(result.missing_bytes)} of it would be fetched")
    else:
        note(result.fetched.line())
