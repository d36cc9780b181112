"""`edgepack unpack`: the GGUF out of an archive; the work is `edgepack.unpack`'s and `edgepack.unpack_native`'s."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepack.cli.output import force_option, json_option, note, print_json, terminal_progress
from edgepack.cli.trust_options import trust_options

if TYPE_CHECKING:
    from edgepack.packaging.trust.policy import TrustPolicy


@click.command("unpack")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The file to write [the member's name].")
@click.option("--native", is_flag=True, help="Decode a GGUF of the variant into a plain GGUF for stock llama.cpp.")
@click.option("--native-type", metavar="T", help="What coded tensors become, such as q6_k. Default: as each one says.")
@click.option("--threads", type=click.IntRange(1), help="Workers; one a core by default.")
@trust_options
@force_option
@json_option
def command(
    file: Path,
    output: Path | None,
    trusted: TrustPolicy,
    native: bool,
    native_type: str | None,
    threads: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Restore the GGUF of the archive FILE (- for a pipe), verified while written; continues an interrupted run.

    With --native, FILE may also be a GGUF of the variant itself.
    """
    from edgepack.api.unpacking import unpack
    from edgepack.quantities import format_duration, format_size

    if native or native_type:
        _native(file, output, native_type, trusted, threads, force=force, as_json=as_json)
        return
    archive = sys.stdin.buffer if file == Path("-") else file
    result = unpack(archive, output, trusted=trusted, force=force, threads=threads, progress=terminal_progress)
    if as_json:
        print_json(
            {
                "output": str(result.output),
                "bytes": result.bytes,
                "original_bytes": result.bytes,
                "sha256": result.sha256,
                "seconds": result.seconds,
                "kept_bytes": result.kept_bytes,
                "beside": [str(path) for path in result.beside],
            }
        )
        return
    kept = f", {format_size(result.kept_bytes)} of it kept from before" if result.kept_bytes else ""
    note(f"{result.output}: {format_size(result.bytes)}{kept}, verified, in {format_duration(result.seconds)}")
    _tell_beside(result.beside)


def _tell_beside(paths: tuple[Path, ...]) -> None:
    from edgepack.quantities import format_size

    for path in paths:
        note(f"{path}: {format_size(path.stat().st_size)}, belongs to it: give it to llama.cpp too (--lora)")


def _native(
    file: Path,
    output: Path | None,
    native_type: str | None,
    trusted: TrustPolicy,
    threads: int | None,
    *,
    force: bool,
    as_json: bool,
) -> None:
    from edgepack.api.unpacking import unpack_native
    from edgepack.quantities import format_duration, format_size

    result = unpack_native(
        file, output, native_type=native_type, trusted=trusted, force=force, threads=threads, progress=terminal_progress
    )
    if as_json:
        print_json(
            {
                "output": str(result.output),
                "bytes": result.bytes,
                "original_bytes": result.original_bytes,
                "sha256": result.sha256,
                "seconds": result.seconds,
                "beside": [str(path) for path in result.beside],
                "tensors": [{"name": t.name, "type": t.type.name, "bytes": t.nbytes} for t in result.tensors],
            }
        )
        return
    took = format_duration(result.seconds)
    note(f"{result.output}: {format_size(result.bytes)}, {result.coded} coded tensors decoded, in {took}")
    _tell_beside(result.beside)
