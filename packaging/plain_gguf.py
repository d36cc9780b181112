"""A GGUF looked at as archives are, for `verify` and `inspect`: it has a structure to check but no digests."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from edgepack.errors import GGUFError, UsageError
from edgepack.file_digest import file_sha256
from edgepack.files.source import open_source
from edgepack.gguf.reader import MAGIC, read_header
from edgepack.packaging.inspection import Inspection, MemberFacts, StreamFacts, TensorFacts
from edgepack.packaging.verify import Problem
from edgepack.progress import Progress, silent

if TYPE_CHECKING:
    from pathlib import Path


def is_gguf(path: Path) -> bool:
    """Whether the file begins as a GGUF does."""
    try:
        with open_source(path) as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except (OSError, UsageError):
        return False


def verify_gguf(path: Path) -> tuple[Problem, ...]:
    """What is wrong with the structure of a GGUF: truncation, overlaps, bytes of no tensor. Nothing is raised."""
    try:
        left = read_header(path).trailing_bytes
    except GGUFError as error:
        return (Problem("structure", str(error)),)
    return (Problem("end", f"{left} bytes behind the last tensor belong to none"),) if left else ()


def inspect_gguf(path: Path, *, tensors: bool = False, progress: Progress = silent) -> Inspection:
    """As `inspection.inspect_archive`: the file is the one member, and each tensor type a kind of stream.

    Raises:
        GGUFError: not a whole GGUF.
    """
    header = read_header(path)
    size, types = header.file_bytes, Counter({"metadata": header.data_start})
    for tensor in header.tensors:
        types[tensor.type.name] += tensor.nbytes
    listed = tuple(TensorFacts(t.name, t.type.name, t.nbytes, t.nbytes) for t in header.tensors)
    return Inspection(
        format_version=f"GGUF {header.version}",
        bytes=size,
        original_bytes=size,
        members=(MemberFacts(path.name, "gguf", size, size, file_sha256(path, progress=progress)),),
        streams=tuple(StreamFacts(kind, count, count) for kind, count in types.items()),
        tensors=listed if tensors else None,
    )
