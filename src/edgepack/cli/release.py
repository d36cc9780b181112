"""`edgepack release`: an archive becomes the folder that a publisher uploads."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepack.cli.output import json_option, note, print_json, terminal_progress
from edgepack.cli.trust_options import trust_options

if TYPE_CHECKING:
    from edgepack.packaging.trust.policy import TrustPolicy

_PATH = click.Path(path_type=Path)


@click.command("release")
@click.argument("file", type=_PATH)
@click.option("-o", "--output", type=_PATH, required=True, metavar="FOLDER", help="Must be empty or not there.")
@click.option("--gguf", is_flag=True, help="Put the plain GGUF in too.")
@click.option("--key", type=_PATH, help="Sign the archive and the sums with this private key.")
@click.option("--openssf-key", type=_PATH, help="Sign the folder in OpenSSF's format too (keygen --openssf).")
@click.option("--license", "license_file", type=_PATH, metavar="FILE", help="The licence's text [the archive's own].")
@click.option("--base-model", metavar="ORG/NAME", help="The original on the hub, where the archive does not say it.")
@trust_options
@json_option
def command(
    file: Path,
    output: Path,
    gguf: bool,
    key: Path | None,
    openssf_key: Path | None,
    license_file: Path | None,
    base_model: str | None,
    trusted: TrustPolicy,
    as_json: bool,
) -> None:
    """Write what is uploaded of the archive FILE: itself, model card, plots, adapters, configuration, sums, signature.

    The card's tables and plots come from the certificate (edgepack certify), its origin from the derivation.
    """
    from edgepack.api.publishing import release
    from edgepack.quantities import format_size

    found = release(
        file, output, gguf=gguf, key=key, openssf_key=openssf_key, license_file=license_file,
        base_model=base_model, trusted=trusted, progress=terminal_progress,
    )  # fmt: skip
    if as_json:
        print_json({**asdict(found), "folder": str(found.folder)})
        return
    for line in found.missing:
        note(f"note: {line}")
    signed = f", signed by ed25519 {found.key}" if found.key else ", unsigned"
    note(f"{found.folder}: {len(found.files) + 1} files, {format_size(found.bytes)}{signed}")
