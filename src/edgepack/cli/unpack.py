"""`edgepack unpack`: the GGUF out of an archive; the work is `edgepack.packaging.restore.unpack`'s."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepack.cli.output import json_option, note, print_json, terminal_progress
from edgepack.errors import UsageError

if TYPE_CHECKING:
    from edgepack.packaging.restore.unpack import UnpackResult


def _unpack(file: Path, output: Path | None, trusted: tuple[Path, ...], threads: int | None) -> UnpackResult:
    from edgepack.packaging.restore.stream import unpack_stream
    from edgepack.packaging.restore.unpack import unpack_archive

    keys = _load_keys(trusted)
    if file == Path("-"):
        target = Path() if output is None else output
        return unpack_stream(sys.stdin.buffer, target, trusted=keys, threads=threads, progress=terminal_progress)
    target = _default_output(file) if output is None else output
    return unpack_archive(file, target, trusted=keys, threads=threads, progress=terminal_progress)


def _load_keys(paths: tuple[Path, ...]) -> list[bytes]:
    if not paths:
        return []
    from edgepack.packaging.signing import load_public_key

    return [load_public_key(path) for path in paths]


def _default_output(file: Path) -> Path:
    """The model's own name beside the archive; never a file that is there already."""
    from edgepack.packaging.archive import open_archive

    with open_archive(file) as archive:
        target = file.parent / Path(archive.main.name).name
    if target.exists():
        raise UsageError(f"'{target}' is there already: name the output with -o")
    return target


@click.command("unpack")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The file to write [the member's name].")
@click.option("--trusted", multiple=True, type=click.Path(path_type=Path), help="A public key that must have signed.")
@click.option("--native", is_flag=True, help="Decode a GGUF of the variant into a plain GGUF for stock llama.cpp.")
@click.option("--native-type", metavar="T", help="What coded tensors become, such as q6_k. Default: as each one says.")
@click.option("--threads", type=click.IntRange(1), help="Workers; one a core by default.")
@json_option
def command(
    file: Path,
    output: Path | None,
    trusted: tuple[Path, ...],
    native: bool,
    native_type: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Restore the GGUF of the archive FILE (- for a pipe), verified while written; continues an interrupted run.

    With --native, FILE may also be a GGUF of the variant itself.
    """
    from edgepack.quantities import format_duration, format_size

    if native or native_type:
        from edgepack.cli.unpack_native import unpack_native

        unpack_native(file, output, native_type, threads, as_json=as_json)
        return
    result = _unpack(file, output, trusted, threads)
    if as_json:
        print_json(
            {
                "output": str(result.output),
                "bytes": result.bytes,
                "original_bytes": result.bytes,
                "sha256": result.sha256,
                "seconds": result.seconds,
                "kept_bytes": result.kept_bytes,
            }
        )
        return
    kept = f", {format_size(result.kept_bytes)} of it kept from before" if result.kept_bytes else ""
    note(f"{result.output}: {format_size(result.bytes)}{kept}, verified, in {format_duration(result.seconds)}")
