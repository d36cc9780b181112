"""`edgepack extract`: members or single tensors out of an archive; the work is `edgepack.packaging`'s."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepack.cli.output import json_option, note, print_json, terminal_progress
from edgepack.errors import UsageError

if TYPE_CHECKING:
    from edgepack.packaging.archive import Archive


@click.command("extract")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path(), help="The folder to write into [.].")
@click.option("--members", is_flag=True, help="Every member but the model itself.")
@json_option
def command(file: Path, names: tuple[str, ...], output: Path, members: bool, as_json: bool) -> None:
    """Take members (by name) or tensors of the model (by name, as raw blocks in NAME.bin) out of the archive FILE.

    Only the chunks that hold them are read.
    """
    from edgepack.packaging.archive import open_archive

    if not output.is_dir():
        raise UsageError(f"output '{output}': expected a folder that exists")
    with open_archive(file) as archive:
        wanted = [*names, *(m.name for m in archive.members if members and m is not archive.main)]
        if not wanted:
            raise UsageError("name a member or a tensor, or ask for --members; `edgepack inspect --tensors` lists them")
        extracted = [_extract(file, archive, name, output) for name in dict.fromkeys(wanted)]
    if as_json:
        print_json({"extracted": extracted})
        return
    for entry in extracted:
        note(f"{entry['output']}: {entry['bytes']} bytes, sha256 {entry['sha256']}")


def _extract(file: Path, archive: Archive, name: str, folder: Path) -> dict[str, Any]:
    from edgepack.packaging.restore.unpack import extract_tensor, unpack_archive

    if name not in [member.name for member in archive.members]:
        target = folder / f"{name.replace('/', '_')}.bin"
        segment = extract_tensor(archive, name, target)
        return {"output": str(target), "bytes": segment.entry.tensor_bytes, "sha256": segment.entry.sha256.hex()}
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    result = unpack_archive(file, target, member=name, progress=terminal_progress)
    return {"output": str(target), "bytes": result.bytes, "sha256": result.sha256}
