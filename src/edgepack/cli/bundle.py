"""`edgepack bundle`: a folder for machines without network; the work is `edgepack.bundle`'s."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepack.cli.output import json_option, note, print_json, terminal_progress
from edgepack.cli.trust_options import trust_options
from edgepack.errors import UsageError

if TYPE_CHECKING:
    from edgepack.packaging.trust.policy import TrustPolicy


@click.command("bundle")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The new folder [FILE's name with -bundle].")
@click.option("--platform", metavar="NAME", help="linux-x86_64, windows-x86_64, macos-arm64 … [this machine's].")
@click.option("--python", "pythons", multiple=True, metavar="3.X", help="A version it may have; repeatable [this one].")
@click.option("--wheels", type=click.Path(path_type=Path), help="A folder that has all wheels: nothing is fetched.")
@click.option("--offline", is_flag=True, help="Open no connection, as EDGEPACK_OFFLINE=1 says; needs --wheels.")
@trust_options
@json_option
def command(
    file: Path,
    output: Path | None,
    platform: str | None,
    pythons: tuple[str, ...],
    wheels: Path | None,
    offline: bool,
    trusted: TrustPolicy,
    as_json: bool,
) -> None:
    """Put the archive FILE, edgepack's wheels and a script into one folder, for a machine without a network.

    There `./run.sh` (`run.cmd` on Windows) checks the folder, installs edgepack once and starts a chat; it needs
    Python and no compiler. The wheels come from pip's index unless --wheels has them.
    """
    from edgepack.api.bundling import bundle
    from edgepack.quantities import format_size

    for python in pythons:
        if not re.fullmatch(r"3\.[1-9]\d", python):
            raise UsageError(f"--python: expected a version such as 3.12, got {python!r}")
    result = bundle(
        file,
        output,
        platform=platform,
        pythons=pythons,
        wheels=wheels,
        offline=offline,
        progress=terminal_progress,
        trusted=trusted,
    )
    if as_json:
        print_json(result.json())
        return
    note(f"{result.folder}: {result.archive} and {len(result.wheels)} wheels, {format_size(result.bytes)}; ./run.sh")
