"""`edgepack verify`: every byte of an archive against its digests, and who signed it; `edgepack.verify` works."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepack.cli.output import json_option, note, print_json, terminal_progress
from edgepack.cli.trust_options import trust_options
from edgepack.errors import IntegrityError

if TYPE_CHECKING:
    from edgepack.packaging.trust.policy import TrustPolicy


@click.command("verify")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--deep", is_flag=True, help="Also restore everything in memory and check chunks, tensors and files.")
@trust_options
@json_option
def command(file: Path, deep: bool, trusted: TrustPolicy, as_json: bool) -> int:
    """Check FILE (an archive): exit code 0 when it is whole, 1 with the damaged places named.

    A GGUF carries no digests: of one, only the structure is checked.
    """
    from edgepack.api.checking import key_list, verify

    result = verify(file, deep=deep, trusted=trusted, progress=terminal_progress)
    if as_json:
        print_json(result.json())
        return int(not result.ok)
    for problem in result.problems:
        note(f"{problem.where}: {problem.what}")
    if not result.ok:
        count = len(result.problems)
        raise IntegrityError(f"'{file}': {count} problem{'s' if count > 1 else ''}")
    signed = result.signature
    note(f"{file}: sound, {signed.state.value}{key_list(signed)}" if signed else f"{file}: sound in its structure")
    return 0
