"""What two files hold, digest by digest, and where they differ. Why they are compared is `rederive`'s."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from edgepack.file_digest import file_sha256, stream_sha256
from edgepack.files.source import open_source
from edgepack.gguf import keys
from edgepack.gguf.reader import read_header
from edgepack.packaging.archive import is_archive, open_archive
from edgepack.packaging.trust.policy import ANYONE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from edgepack.gguf.reader import GGUFHeader
    from edgepack.gguf.types import Value


@dataclass(frozen=True)
class Contents:
    """A GGUF, wherever it lies: SHA-256, metadata, and name → (type, shape, SHA-256) of every tensor."""

    sha256: str
    metadata: Mapping[str, Value]
    tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]


def contents_of(file: Path) -> Contents:
    """Of a GGUF, or of the one in an archive; raises as `read_header` and `open_archive`."""
    if not is_archive(file):
        header = read_header(file)
        return Contents(file_sha256(file), header.metadata, _tensors(header, _digests(file, header)))
    with open_archive(file, ANYONE) as archive:  # its index has every digest: nothing is restored
        header, main = archive.gguf_header(), archive.main
        digests = {segment.entry.name: segment.entry.sha256 for segment in main.segments if segment.entry.name}
        return Contents(main.sha256, header.metadata, _tensors(header, digests))


def _digests(file: Path, header: GGUFHeader) -> dict[str, bytes]:
    found = {}
    with open_source(file) as stream:
        for info in header.tensors:
            stream.seek(header.data_start + info.offset)
            found[info.name] = stream_sha256(stream, info.nbytes)
    return found


def _tensors(header: GGUFHeader, digests: Mapping[str, bytes]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {info.name: (info.type.name, info.shape, digests.get(info.name, b"")) for info in header.tensors}


def differences(there: Contents, again: Contents) -> Iterator[str]:
    """A line for each key and tensor that differs; the certificate is put in after the export."""
    for key in sorted((there.metadata.keys() | again.metadata.keys()) - {keys.CERTIFICATE}):
        if key.startswith(keys.CONFIDENCE):
            continue
        if there.metadata.get(key) != again.metadata.get(key):
            yield f"metadata '{key}': differs"
    for name in [*there.tensors, *(name for name in again.tensors if name not in there.tensors)]:
        ours, theirs = there.tensors.get(name), again.tensors.get(name)
        if ours is None or theirs is None:
            yield f"tensor '{name}': only in the {'file' if theirs is None else 'recomputed one'}"
        elif ours[:2] != theirs[:2]:
            yield f"tensor '{name}': {ours[0]} {list(ours[1])}, recomputed {theirs[0]} {list(theirs[1])}"
        elif ours[2] != theirs[2]:
            yield f"tensor '{name}': {ours[0]}, other bytes"


def members_of(file: Path) -> dict[str, str]:
    """Name → SHA-256 of an archive's GGUFs beside the model."""
    with open_archive(file, ANYONE) as archive:
        return {PurePosixPath(member.name).name: member.sha256 for member in archive.beside}
