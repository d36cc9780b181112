"""`edgepack reproduce`: a file made again from its sources, and whether the bytes are equal."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepack.cli.output import json_option, note, print_json, say, terminal_progress
from edgepack.cli.place import Place
from edgepack.cli.source_options import source_options
from edgepack.cli.trust_options import trust_options
from edgepack.errors import CheckFailedError

if TYPE_CHECKING:
    from edgepack.packaging.trust.policy import TrustPolicy
    from edgepack.pipeline.rederive import DerivationCheck

_PATH = click.Path(path_type=Path)


@click.command("reproduce")
@click.argument("file", type=_PATH)
@click.option(
    "--model", type=Place(), required=True, metavar="MODEL", help="What FILE was made of: a folder, its URL or a GGUF."
)
@source_options("The text that its derivation names.")
@trust_options
@json_option
def command(
    file: Path, model: Path | str, threads: int | None, trusted: TrustPolicy, as_json: bool, **inputs: Path | None
) -> int:
    """Make FILE (an archive, or a GGUF with NAME.intoto.json beside it) again as its derivation says, and compare.

    Every input is held against its digest first. Exit 0: the bytes are equal (but for a certificate that was added
    afterwards). Exit 1: they are not; the first difference is named, an input or a tensor.
    """
    from edgepack.api.provenance import reproduce

    began = time.monotonic()
    found = reproduce(file, model, trusted=trusted, threads=threads, progress=terminal_progress, **inputs)
    if as_json:
        seconds = round(time.monotonic() - began, 3)
        print_json({"equal": found.same, "first_difference": found.first_difference or None, **asdict(found),
                    "seconds": seconds})  # fmt: skip
    else:
        say("\n".join(_told(found)))
    if found.same:
        return 0
    note(f"FAILED: {found.first_difference}")
    return CheckFailedError.exit_code


def _told(found: DerivationCheck) -> list[str]:
    lines = [f"version: {line}" for line in found.versions]
    if found.sha256 == found.recomputed:
        return [*lines, f"equal: the same bytes, sha256 {found.sha256}"]
    if found.same:
        return [*lines, f"equal: the same {found.tensors} tensors and metadata; only the certificate was added"]
    if not found.recomputed:
        return [f"input {line}" for line in found.sources]
    count = f"{len(found.differences)} differences, {found.tensors} tensors"
    return [*lines, f"NOT equal: {count}; the first: {found.first_difference}"]
