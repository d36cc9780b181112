"""`edgepack unpack --native`: a file of the variant becomes a plain GGUF; the work is `edge.install.native`'s."""

from __future__ import annotations

import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.cli.output import note, print_json, terminal_progress
from edgepack.errors import UsageError
from edgepack.file_digest import file_sha256
from edgepack.quantities import format_duration, format_size

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def _variant_file(file: Path, folder: Path, threads: int | None) -> Iterator[Path]:
    """The GGUF itself, or the one inside an archive, restored into a temporary folder for as long as it is needed."""
    from edgepack.packaging.archive import is_archive
    from edgepack.packaging.restore.unpack import unpack_archive

    if not file.is_file():
        raise UsageError(f"'{file}': no such file")
    if not is_archive(file):
        yield file
        return
    with tempfile.TemporaryDirectory(dir=folder, prefix=".edgepack-") as temporary:
        restored = Path(temporary) / "variant.gguf"
        unpack_archive(file, restored, threads=threads, progress=terminal_progress)
        yield restored


def unpack_native(
    file: Path, output: Path | None, native_type: str | None, threads: int | None, *, as_json: bool
) -> None:
    """Decode `file` and say what came of it.

    Raises:
        UsageError: no such file, or a type that cannot hold weights.
        GGUFError, ArchiveError, IntegrityError: the file is not sound.
        CodecError: it is not of the variant, or made by a newer edgepack.
    """
    from edgepack.atomic_file import check_output
    from edgepack.edge.install.native import plan_native, write_native
    from edgepack.quant.types.targets import find_type

    started = time.monotonic()
    path = output or file.with_name(f"{file.stem}-native.gguf")
    check_output(path)
    kind = find_type(native_type) if native_type else None
    with _variant_file(file, path.parent, threads) as variant:
        plan = plan_native(variant, kind)
        size = write_native(plan, path, threads=threads, progress=terminal_progress)
    seconds = time.monotonic() - started
    if as_json:
        result = {"output": str(path), "bytes": size, "original_bytes": file.stat().st_size, "seconds": seconds}
        tensors = [{"name": info.name, "type": info.type.name, "bytes": info.nbytes} for info in plan.infos]
        print_json({**result, "sha256": file_sha256(path), "tensors": tensors})
        return
    note(f"{path}: {format_size(size)}, {len(plan.variant.coded)} coded tensors decoded, in {format_duration(seconds)}")
