"""A GGUF looked at as archives are, for `verify` and `inspect`: it has a structure to check but no digests."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from edgepack.errors import GGUFError
from edgepack.file_digest import file_sha256
from edgepack.gguf.reader import MAGIC, read_header
from edgepack.packaging.verify import Problem
from edgepack.progress import Progress, silent

if TYPE_CHECKING:
    from pathlib import Path


def is_gguf(path: Path) -> bool:
    """Whether the file begins as a GGUF does."""
    try:
        with path.open("rb") as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def verify_gguf(path: Path) -> tuple[Problem, ...]:
    """What is wrong with the structure of a GGUF: truncation, overlaps, unknown types. Nothing is raised."""
    try:
        read_header(path)
    except GGUFError as error:
        return (Problem("structure", str(error)),)
    return ()


def describe_gguf(path: Path, progress: Progress = silent) -> dict[str, Any]:
    """Under the keys of `inspection.describe_archive`: one member, and bytes by tensor type as streams.

    Raises:
        GGUFError: not a whole GGUF.
    """
    header = read_header(path)
    size, types = header.file_bytes, Counter({"metadata": header.data_start})
    for tensor in header.tensors:
        types[tensor.type.name] += tensor.nbytes
    member = {
        "name": path.name,
        "role": "gguf",
        "bytes": size,
        "stored_bytes": size,
        "sha256": file_sha256(path, progress=progress),
    }
    return {
        "format_version": f"GGUF {header.version}",
        "bytes": size,
        "original_bytes": size,
        "members": [member],
        "streams": [
            {"kind": kind, "bytes": count, "stored_bytes": count, "dictionary": None} for kind, count in types.items()
        ],
    }


def describe_gguf_tensors(path: Path) -> list[dict[str, Any]]:
    """Name, type and bytes of every tensor."""
    return [
        {"name": tensor.name, "type": tensor.type.name, "bytes": tensor.nbytes, "stored_bytes": tensor.nbytes}
        for tensor in read_header(path).tensors
    ]
