"""Applies a patch: the new file from the old one, bit for bit, or no file at all.

The patch's own digest is checked first; every range is checked before it is used. Making patches is left to
`diff`, their bytes to `patch_format`.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from edgepack.errors import ArchiveError, IntegrityError, UsageError
from edgepack.file_digest import stream_sha256
from edgepack.files.claim import claimed_output
from edgepack.files.output import atomic_output
from edgepack.files.source import open_source
from edgepack.packaging.archive import open_archive
from edgepack.packaging.delta.patch_format import (
    OPERATION,
    PATCH_HEAD,
    Operation,
    OperationType,
    PatchHead,
    decode_operation,
    decode_patch_head,
    decode_piece,
)
from edgepack.packaging.delta.pieces import fingerprint
from edgepack.packaging.format import DIGEST_BYTES, MAGIC, MAX_NAME_BYTES, check_expansion
from edgepack.packaging.index.member_names import check_member_name
from edgepack.packaging.trust.policy import machine_policy
from edgepack.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgepack.packaging.trust.policy import TrustPolicy

_COPY_BYTES = 4 << 20


@dataclass(frozen=True)
class PatchResult:
    """What applying a patch gave: the new file, its length and SHA-256 in hexadecimal, the wall time."""

    output: Path
    bytes: int
    sha256: str
    seconds: float


def apply_patch(
    old: Path,
    patch: Path,
    out: Path | None = None,
    *,
    trust: TrustPolicy | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> PatchResult:
    """Make the new file.

    Args:
        old: the file that the patch was made for.
        patch: what `diff_files` wrote.
        out: the new file; by default the name that it had, beside `old`.
        trust: whose archives are taken, old and new; the user's trust store by default.
        force: replace a file that is there already; never `old` or the patch.
        progress: told of bytes written.

    Raises:
        ArchiveError: the patch is not one, or hostile.
        IntegrityError: the patch is damaged, or `old` is not the file that it was made for. No output appears.
        CheckFailedError: nobody trusted signed the old archive or the new one. No output appears.
        UsageError: a file is not there, or the output is.
    """
    started = time.perf_counter()
    trust = machine_policy() if trust is None else trust
    for path in (old, patch):
        if not path.is_file():
            raise UsageError(f"'{path}': no such file")
    with open_source(patch) as steps, open_source(old) as source:
        head, start = decode_patch_head(steps.read(PATCH_HEAD.size + MAX_NAME_BYTES))
        check_expansion(head.new_bytes, os.fstat(steps.fileno()).st_size + os.fstat(source.fileno()).st_size)
        end = _check_patch(steps, patch)
        target = _output(old, head.name) if out is None else out
        with claimed_output(target, head.new_bytes, inputs=[old, patch], force=force):
            _check_old(old, source, head)
            _check_signer(old, source, trust)
            steps.seek(start)
            with atomic_output(target) as stream, progress("patching", head.new_bytes) as advance:
                whole, written = hashlib.sha256(), 0
                for block in _new_blocks(steps, end, source, head):
                    stream.write(block)
                    whole.update(block)
                    written += len(block)
                    advance(len(block))
                if written != head.new_bytes or whole.digest() != head.new_sha256:
                    raise IntegrityError(f"'{patch}': SHA-256 of the result differs: '{old}' is damaged")
                stream.flush()
                _check_signer(target, stream, trust)
    return PatchResult(target, written, head.new_sha256.hex(), time.perf_counter() - started)


def _check_signer(path: Path, stream: BinaryIO, trust: TrustPolicy) -> None:
    """Hold an archive that is open already against the policy; another file only where that asks for signed ones."""
    if os.pread(stream.fileno(), len(MAGIC), 0) == MAGIC:
        open_archive(path, trust, descriptor=stream.fileno()).close()
    else:
        trust.check_plain(path)


def _output(old: Path, name: str) -> Path:
    check_member_name(name)
    if "/" in name:
        raise ArchiveError(f"patch: expected a name without a folder, got {name!r}")
    return old.with_name(name)


def _check_patch(steps: BinaryIO, patch: Path) -> int:
    """Check the patch against its own digest; returns where its operations end."""
    size = os.fstat(steps.fileno()).st_size
    steps.seek(0)
    digest = stream_sha256(steps, max(0, size - DIGEST_BYTES))
    if steps.read(DIGEST_BYTES) != digest:
        raise IntegrityError(f"'{patch}': SHA-256 differs: the patch is truncated or damaged")
    return size - DIGEST_BYTES


def _check_old(old: Path, source: BinaryIO, head: PatchHead) -> None:
    size = os.fstat(source.fileno()).st_size
    if size != head.old_bytes or fingerprint(source.fileno(), size) != head.old_fingerprint:
        raise IntegrityError(f"'{old}': the patch was made for another file (of {head.old_bytes} bytes)")


def _new_blocks(steps: BinaryIO, end: int, source: BinaryIO, head: PatchHead) -> Iterator[bytes]:
    """The bytes of the new file, in blocks of bounded length."""
    number = written = 0
    while True:
        where = f"patch, operation {number}"
        operation = decode_operation(steps.read(OPERATION.size), head, written, where)
        if operation.type is OperationType.END:
            break
        if steps.tell() + operation.payload_bytes > end:
            raise ArchiveError(f"{where}: expected {operation.payload_bytes} bytes, the patch ends before")
        yield from _blocks(operation, steps, source, where)
        written += operation.new_bytes
        number += 1
    if steps.tell() != end:
        raise ArchiveError(f"patch: {end - steps.tell()} bytes behind its last operation")


def _blocks(operation: Operation, steps: BinaryIO, source: BinaryIO, where: str) -> Iterator[bytes]:
    source.seek(operation.old_offset)
    if operation.type is OperationType.COPY:
        for start in range(0, operation.old_bytes, _COPY_BYTES):
            yield source.read(min(_COPY_BYTES, operation.old_bytes - start))
        return
    old = source.read(operation.old_bytes) if operation.type is OperationType.DELTA else b""
    yield decode_piece(steps.read(operation.payload_bytes), old, operation.new_bytes, where)
