"""Makes a patch that turns one file into another: ranges copied by digest, deltas where they help, new bytes.

How the patch is applied is left to `patch`, its bytes to `patch_format`.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

from edgepack.files.output import atomic_output
from edgepack.files.source import check_unchanged, open_source
from edgepack.packaging.delta.patch_format import Operation, OperationType, PatchHead, encode_piece
from edgepack.packaging.delta.pieces import CutFile, Piece, cut_file, fingerprint
from edgepack.packaging.index.member_names import check_member_name
from edgepack.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgepack.packaging.trust.policy import TrustPolicy

DEFAULT_LEVEL = 10


@dataclass(frozen=True)
class DiffResult:
    """What a diff gave.

    Attributes:
        output: the patch.
        bytes: its length.
        new_bytes: length of the new file.
        copied_bytes: how much of the new file is in the old one.
        sha256: of the new file, in hexadecimal.
        seconds: wall time.
    """

    output: Path
    bytes: int
    new_bytes: int
    copied_bytes: int
    sha256: str
    seconds: float


def diff_files(
    old: Path,
    new: Path,
    out: Path,
    *,
    level: int = DEFAULT_LEVEL,
    trust: TrustPolicy | None = None,
    progress: Progress = silent,
) -> DiffResult:
    """Write a patch that makes `new` from `old`, bit for bit.

    Args:
        old: a GGUF, an archive, or any file.
        new: what it became.
        out: the patch.
        level: zstd level.
        trust: whose archives are taken; the user's trust store by default.
        progress: told of bytes read.

    Raises:
        UsageError: a file is not there, or the output folder is absent.
        ArchiveError, IntegrityError: an archive does not hold together.
    """
    started = time.perf_counter()
    check_member_name(new.name)
    total = sum(path.stat().st_size for path in (old, new) if path.is_file())
    with progress("comparing", total) as advance:
        before, after = cut_file(old, advance, trust), cut_file(new, advance, trust)
    with atomic_output(out) as stream, open_source(old) as source, open_source(new) as target:
        head = PatchHead(new.name, before.bytes, after.bytes, fingerprint(source.fileno(), before.bytes), after.sha256)
        writer = _PatchWriter(stream)
        writer.write(head.encode())
        for operation, payload in _operations(before, after, source, target, level):
            writer.add(operation, payload)
        for cut in (before, after):
            check_unchanged(cut.path, cut.state)
        writer.close()
    return DiffResult(
        out, writer.written, after.bytes, writer.copied, after.sha256.hex(), time.perf_counter() - started
    )


@dataclass
class _PatchWriter:
    """Joins copies that follow one another, and digests what it writes."""

    stream: BinaryIO
    written: int = 0
    copied: int = 0
    _digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    _copy: Operation | None = None

    def write(self, block: bytes) -> None:
        self.stream.write(block)
        self._digest.update(block)
        self.written += len(block)

    def add(self, operation: Operation, payload: bytes) -> None:
        if operation.type is OperationType.COPY:
            self.copied += operation.new_bytes
            last = self._copy
            if last is not None and last.old_offset + last.old_bytes == operation.old_offset:
                size = last.old_bytes + operation.old_bytes
                self._copy = Operation(OperationType.COPY, 0, last.old_offset, size, size)
                return
        self._flush()
        if operation.type is OperationType.COPY:
            self._copy = operation
        else:
            self.write(operation.encode() + payload)

    def _flush(self) -> None:
        if self._copy is not None:
            self.write(self._copy.encode())
            self._copy = None

    def close(self) -> None:
        self._flush()
        self.write(Operation(OperationType.END).encode())
        self.stream.write(self._digest.digest())
        self.written += self._digest.digest_size


def _operations(
    before: CutFile, after: CutFile, source: BinaryIO, target: BinaryIO, level: int
) -> Iterator[tuple[Operation, bytes]]:
    by_digest = {digest: piece for piece, digest in before.pieces}
    by_name = {piece.name: piece for piece, _digest in before.pieces}
    for piece, digest in after.pieces:
        same = by_digest.get(digest)
        if same is not None:
            yield Operation(OperationType.COPY, 0, same.start, same.bytes, same.bytes), b""
        else:
            yield _changed(piece, by_name.get(piece.name), source, target, level)


def _changed(
    piece: Piece, similar: Piece | None, source: BinaryIO, target: BinaryIO, level: int
) -> tuple[Operation, bytes]:
    """A delta against the old piece of the same name where that is smaller, else new bytes."""
    target.seek(piece.start)
    content = target.read(piece.bytes)
    payload = encode_piece(content, b"", level)
    operation = Operation(OperationType.NEW, len(payload), 0, 0, piece.bytes)
    if similar is None:
        return operation, payload
    source.seek(similar.start)
    delta = encode_piece(content, source.read(similar.bytes), level)
    if len(delta) >= len(payload):
        return operation, payload
    return Operation(OperationType.DELTA, len(delta), similar.start, similar.bytes, piece.bytes), delta
