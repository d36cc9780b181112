"""`edgepack pack`: a GGUF into one archive; the work is `edgepack.pack`'s."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepack.cli.output import force_option, json_option, note, print_json, terminal_progress
from edgepack.cli.trust_options import trust_options
from edgepack.errors import UsageError

if TYPE_CHECKING:
    from edgepack.packaging.trust.policy import TrustPolicy


@click.command("pack")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The archive [FILE.edgepack]; - for a pipe.")
@click.option("--level", type=click.IntRange(1, 19), default=10, show_default=True, help="zstd level.")
@click.option("--no-dictionary", is_flag=True, help="Train no dictionaries.")
@click.option("--include", multiple=True, type=click.Path(path_type=Path), help="Another file to put in; repeatable.")
@click.option("--mmproj", type=click.Path(path_type=Path), metavar="FILE", help="The model's projector: what sees.")
@click.option("--base", type=click.Path(path_type=Path), help="An older archive, to take chunks and dictionaries from.")
@click.option("--release", metavar="N.N", help="The model's version: devices tell of one older than they have taken.")
@click.option("--threads", type=click.IntRange(1), help="Workers; one a core by default.")
@click.option("--dry-run", is_flag=True, help="Only estimate the archive's size, from a sample.")
@trust_options
@force_option
@json_option
def command(
    file: Path,
    output: Path | None,
    level: int,
    no_dictionary: bool,
    include: tuple[Path, ...],
    mmproj: Path | None,
    base: Path | None,
    release: str | None,
    trusted: TrustPolicy,
    threads: int | None,
    dry_run: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Pack FILE (a GGUF) into one verified archive that restores bit for bit."""
    from edgepack.api.archives import pack
    from edgepack.packaging.pack import STANDARD_STREAM
    from edgepack.quantities import format_duration, format_size

    output = file.with_suffix(".edgepack") if output is None else output
    if as_json and output == STANDARD_STREAM:
        raise UsageError("--json and -o - both want standard output")
    if dry_run:
        _estimate(file, output, (*include, *([] if mmproj is None else [mmproj])), level, as_json)
        return
    _tell_of_neighbours(file, include, mmproj)
    result = pack(
        file,
        output,
        level=level,
        dictionary=not no_dictionary,
        include=include,
        projector=mmproj,
        base=base,
        release=release,
        trusted=trusted,
        force=force,
        threads=threads,
        progress=terminal_progress,
        note=note,
    )
    if as_json:
        print_json(
            {
                "output": str(result.output),
                "bytes": result.bytes,
                "original_bytes": result.original_bytes,
                "sha256": result.sha256,
                "seconds": result.seconds,
            }
        )
        return
    share = 100 * result.bytes / result.original_bytes
    note(
        f"{output}: {format_size(result.bytes)}, {share:.1f} % of {format_size(result.original_bytes)}, "
        f"in {format_duration(result.seconds)}"
    )


def _tell_of_neighbours(file: Path, include: tuple[Path, ...], mmproj: Path | None) -> None:
    """What lies beside the model and does not go in without being named."""
    adapter = file.with_name(f"{file.stem}-lora.gguf")
    if adapter.is_file() and adapter not in include:
        note(f"{adapter.name} lies beside it and stays out: --include it where the model answers with it")
    for projector in sorted(file.parent.glob("mmproj*.gguf")):
        if mmproj is None and projector not in include:
            note(f"{projector.name} lies beside it and stays out: --mmproj packs what sees")


def _estimate(file: Path, output: Path, include: tuple[Path, ...], level: int, as_json: bool) -> None:
    from edgepack.api.archives import estimate_pack
    from edgepack.quantities import format_size

    estimate = estimate_pack(file, include=include, level=level)
    if as_json:
        print_json(
            {
                "output": str(output),
                "bytes": estimate.bytes,
                "original_bytes": estimate.original_bytes,
                "estimated_from_bytes": estimate.sampled_bytes,
            }
        )
        return
    share = 100 * estimate.bytes / estimate.original_bytes
    note(
        f"{output}: would be about {format_size(estimate.bytes)}, {share:.1f} % of "
        f"{format_size(estimate.original_bytes)} (from a sample of {format_size(estimate.sampled_bytes)})"
    )
