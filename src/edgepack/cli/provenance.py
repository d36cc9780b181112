"""`edgepack provenance`: what a file was made from, and whether making it again gives the same bytes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepack.cli.output import json_option, note, print_json, say, terminal_progress
from edgepack.cli.place import Place
from edgepack.cli.source_options import source_options
from edgepack.cli.trust_options import trust_options
from edgepack.errors import CheckFailedError

if TYPE_CHECKING:
    from edgepack.packaging.derivation import Derivation
    from edgepack.packaging.trust.policy import TrustPolicy
    from edgepack.pipeline.rederive import DerivationCheck

_PATH = click.Path(path_type=Path)
_SHOWN = 20


@click.command("provenance")
@click.argument("file", type=_PATH)
@click.option("--check", "model", type=Place(), metavar="MODEL", help="Make it again from MODEL and compare.")
@source_options("With --check: the text that the derivation names.")
@trust_options
@json_option
def command(
    file: Path,
    model: Path | str | None,
    threads: int | None,
    trusted: TrustPolicy,
    as_json: bool,
    **inputs: Path | None,
) -> int:
    """Show what FILE (an archive, or a GGUF with NAME.intoto.json beside it) was made from.

    With --check it is made again, in a temporary folder: the same bytes, or tensor by tensor what differs (exit 1).
    """
    from edgepack.api.provenance import check_provenance, provenance

    derivation = provenance(file, trusted=trusted)
    if model is None:
        if as_json:
            print_json(derivation.statement)
        else:
            say("\n".join(_lines(file, derivation)))
        return 0
    found = check_provenance(file, model, trusted=trusted, threads=threads, progress=terminal_progress, **inputs)
    if as_json:
        print_json({**asdict(found), "same": found.same})
    else:
        say("\n".join(_verdict(found)))
    return 0 if found.same else CheckFailedError.exit_code


def _lines(file: Path, derivation: Derivation) -> list[str]:
    at = f" at {derivation.revision}" if derivation.revision else ""
    lines = [f"{file}: {derivation.target} of {derivation.repository or derivation.model}{at}"]
    lines += [f"  made            {each.name}  sha256 {each.sha256}" for each in derivation.subjects]
    lines += [f"  option          {name} = {_shown(value)}" for name, value in derivation.parameters.items()]
    lines += [f"  goal            {name} = {_shown(value)}" for name, value in derivation.goal.items()]
    lines += [f"  {each.role:<15} {each.name}  sha256 {each.sha256}" for each in derivation.sources]
    counts: dict[str, int] = {}
    for kind in derivation.tensors.values():
        counts[kind] = counts.get(kind, 0) + 1
    lines.append("  tensors         " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    lines.append("  computed by     " + ", ".join(f"{name} {value}" for name, value in derivation.versions.items()))
    if derivation.certified_from:
        lines.append(f"  certificate     added afterwards, to sha256 {derivation.certified_from}")
    return lines


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value).replace("\n", "; ")


def _verdict(found: DerivationCheck) -> list[str]:
    lines = [f"source: {line}" for line in found.sources] + [f"version: {line}" for line in found.versions]
    lines += list(found.differences[:_SHOWN])
    if len(found.differences) > _SHOWN:
        lines.append(f"… and {len(found.differences) - _SHOWN} more")
    if found.sha256 == found.recomputed:
        lines.append(f"made again: the same bytes, sha256 {found.sha256}")
    elif found.certificate_only:
        lines.append(f"made again: the same {found.tensors} tensors and metadata; only the certificate was added")
    else:
        lines.append(f"made again: NOT the same: {len(found.differences)} differences")
    if not found.same:
        note("FAILED: the file is not what its derivation and this model give")
    return lines
