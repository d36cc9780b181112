"""`edgepack inspect`: what an archive or a GGUF holds; the values are `edgepack.inspect`'s."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepack.cli.output import json_option, print_json, say, terminal_progress
from edgepack.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from edgepack.packaging.inspection import Inspection


@click.command("inspect")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--tensors", is_flag=True, help="List the tensors of the model too.")
@json_option
def command(file: Path, tensors: bool, as_json: bool) -> int:
    """Show what FILE (an archive or a GGUF) holds and what each kind of stream gained; an archive's index suffices.

    Exit code 1 for an archive that is wrongly signed.
    """
    from edgepack.api.checking import inspect
    from edgepack.packaging.trust.signatures import SignatureState

    found = inspect(file, tensors=tensors, progress=terminal_progress)
    if as_json:
        print_json(found.json())
    else:
        _print(file, found)
    if found.archive is not None and found.archive.signature == SignatureState.INVALID.value:
        raise IntegrityError(f"'{file}': the archive is {found.archive.signature}")
    return 0


def _row(name: str, stored: int, plain: int, note: str = "") -> str:
    from edgepack.quantities import format_size

    share = f"{100 * stored / plain:.1f} %" if plain else ""
    return f"  {name:34} {format_size(plain):>9} → {format_size(stored):>9}  {share:>7}  {note}".rstrip()


def _stated(found: Inspection) -> Iterator[str]:
    """What the model's metadata say was measured of it."""
    for name, told in found.stated.items():
        if "problem" in told:
            yield f"{name}: not sound: {told['problem']}"
    if "forms" in (confidence := _object(found, "confidence")):
        for form, one in confidence["forms"].items():
            figures = ", ".join(f"{name} {value:.4g}" for name, value in one["figures"].items())
            yield f"confidence of {form} by {one['method']}: given from {one['threshold']:.3f} on; {figures}"
    if "caches" in (kv := _object(found, "kv")):
        yield f"caches on {kv['tokens']:,} tokens of {kv['text']} in chunks of {kv['ctx']}, by {kv['engine']}"
        for row in kv["caches"]:
            size = f"{row['bytes_per_token']:>9,} B/token  " if "bytes_per_token" in row else ""
            most = "unknown" if row["kl_high"] is None else f"{row['kl_high']:.5f}"
            agreement = f"{100 * row['agreement']:.2f} % same token"
            yield f"  {row['kv_type']:<14}{size}KL {row['kl']:.5f} (at most {most})  {agreement}"
        chosen = kv.get("smallest_within") or "none smaller than f16"
        yield f"  where f16 does not fit, within {kv['max_kl']:g} nats: {chosen}"


def _object(found: Inspection, name: str) -> Mapping[str, Any]:
    return found.stated.get(name, {})


def _print(file: Path, found: Inspection) -> None:
    facts = [f"format {found.format_version}"]
    if found.archive is not None:
        facts += [f"{found.archive.chunks} chunks", found.archive.signature]
    say(f"{file}: {', '.join(facts)}")
    say(_row("in all", found.bytes, found.original_bytes))
    for line in _stated(found):
        say(line)
    say("members")
    for member in found.members:
        say(_row(member.name, member.stored_bytes, member.bytes, f"sha256 {member.sha256[:16]}…"))
    say("streams")
    for stream in found.streams:
        gain = f"dictionary {stream.dictionary} gained {stream.dictionary_gain} B" if stream.dictionary else ""
        say(_row(stream.kind, stream.stored_bytes, stream.bytes, gain))
    for tensor in found.tensors or ():
        say(_row(f"{tensor.name} {tensor.type}", tensor.stored_bytes, tensor.bytes))
