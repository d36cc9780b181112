"""`edgepack verify`: every byte of an archive against its digests; the work is `edgepack.packaging.verify`'s."""

from __future__ import annotations

from pathlib import Path

import click

from edgepack.cli.output import json_option, note, print_json, terminal_progress
from edgepack.errors import IntegrityError


@click.command("verify")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--deep", is_flag=True, help="Also restore everything in memory and check chunks, tensors and files.")
@json_option
def command(file: Path, deep: bool, as_json: bool) -> int:
    """Check FILE (an archive): exit code 0 when it is whole, 1 with the damaged places named."""
    from edgepack.packaging.verify import verify_archive

    problems = verify_archive(file, deep=deep, progress=terminal_progress)
    if as_json:
        print_json({"ok": not problems, "problems": [{"where": p.where, "what": p.what} for p in problems]})
        return int(bool(problems))
    for problem in problems:
        note(f"{problem.where}: {problem.what}")
    if problems:
        raise IntegrityError(f"'{file}': {len(problems)} problem{'s' if len(problems) > 1 else ''}")
    note(f"{file}: sound")
    return 0
