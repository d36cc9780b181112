"""`edgepack fetch`: an archive from a web server or a checkpoint from the hub; the work is `edgepack.fetch`'s."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepack.cli.output import json_option, note, print_json, terminal_progress
from edgepack.cli.trust_options import trust_options

if TYPE_CHECKING:
    from edgepack.packaging.trust.policy import TrustPolicy

timeout_option = click.option(
    "--timeout", type=click.FloatRange(0.1, 3600), default=30.0, show_default=True, help="Seconds without a byte."
)
connections_option = click.option(
    "--connections", type=click.IntRange(1, 32), default=4, show_default=True, help="Requests at once."
)
offline_option = click.option("--offline", is_flag=True, help="Open no connection, as EDGEPACK_OFFLINE=1 says.")


@click.command("fetch")
@click.argument("source", metavar="URL|hf:ORG/NAME[/FILE][@REVISION]")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File or folder [the address's own name, here].")
@click.option("--mirror", "mirrors", multiple=True, metavar="URL", help="Another address of it; repeatable.")
@click.option("--sha256", metavar="HEX", help="The archive's SHA-256, as its publisher says it.")
@click.option("--base", "bases", multiple=True, type=click.Path(path_type=Path), help="An archive that is here.")
@click.option("--force", is_flag=True, help="Replace another file of that name.")
@click.option("--include", multiple=True, metavar="GLOB", help="hf: further files, such as '*.bin'; repeatable.")
@connections_option
@timeout_option
@offline_option
@trust_options
@json_option
def command(
    source: str,
    output: Path | None,
    mirrors: tuple[str, ...],
    trusted: TrustPolicy,
    sha256: str | None,
    bases: tuple[Path, ...],
    force: bool,
    include: tuple[str, ...],
    connections: int,
    timeout: float,
    offline: bool,
    as_json: bool,
) -> None:
    """Fetch an archive from any web server, or a checkpoint from the Hugging Face hub.

    Of an archive the index comes first and its signature is judged; then every part is checked as it comes. A cut
    connection, and a fetch that was stopped, go on where they ended. Parts that an archive on this machine has are
    not fetched again. fetch and update are the only commands that open a connection.
    """
    from edgepack.api.fetching import fetch
    from edgepack.edge.fetch.hub import HubFiles

    result = fetch(
        source, output, mirrors=mirrors, trusted=trusted, sha256=sha256, bases=bases, force=force, include=include,
        connections=connections, timeout=timeout, offline=offline, note=note, progress=terminal_progress,
    )  # fmt: skip
    if as_json:
        print_json(result.json())
    elif not isinstance(result, HubFiles):
        note(result.line())
