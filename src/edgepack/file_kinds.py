"""Says what a file is by its first bytes, for messages about a file that is not what was expected.

It opens nothing as a model: the readers of each format do that, and ask here what to say when they refuse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.errors import UsageError
from edgepack.files.source import open_source

if TYPE_CHECKING:
    from pathlib import Path

HEAD_BYTES = 64
"""How much of a file's beginning is looked at."""

_GGUF = b"GGUF"
_LFS = b"version https://git-lfs.github.com/spec/"
_BEGINNINGS = (
    (_LFS, "a Git LFS pointer, not the file itself: `git lfs pull` (or a fresh download) brings it"),
    (b"<!DOCTYPE", "an HTML page, such as a download that failed leaves"),
    (b"<!doctype", "an HTML page, such as a download that failed leaves"),
    (b"<html", "an HTML page, such as a download that failed leaves"),
    (b"PK\x03\x04", "a zip file, as torch.save writes: give the folder that holds it"),
    (b"\x80\x02", "a Python pickle, as old versions of torch.save wrote: give the folder that holds it"),
    (b"\x89HDF", "an HDF5 file, as TensorFlow writes: expected safetensors or PyTorch weights"),
    (b"\x1f\x8b", "a gzip file: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstandard file: unpack it first"),
    (b"lmgg", "a model of llama.cpp before GGUF (ggml): convert it with the llama.cpp of its time"),
    (b"fmgg", "a model of llama.cpp before GGUF (ggmf): convert it with the llama.cpp of its time"),
    (b"tjgg", "a model of llama.cpp before GGUF (ggjt): convert it with the llama.cpp of its time"),
)
_GGUF_VERSIONS = range(1, 16)


def describe(head: bytes) -> str | None:
    """What a file is that begins with `head` (at most `HEAD_BYTES`), as a noun phrase; None where nothing is known."""
    if not head:
        return "an empty file"
    for beginning, meaning in _BEGINNINGS:
        if head.startswith(beginning):
            return meaning
    if is_big_endian(head):
        return "a big-endian GGUF (of IBM Z): expected little-endian; llama.cpp's gguf_convert_endian.py turns it"
    if head.startswith(_GGUF):
        return "a GGUF"
    if len(head) >= 10 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return "a safetensors file: give the folder that holds it with its config.json"
    if head.lstrip()[:1] in (b"{", b"["):
        return "a JSON file"
    return None


def describe_file(path: Path) -> str | None:
    """As `describe`, of a file; None also where it cannot be read."""
    try:
        with open_source(path) as stream:
            return describe(stream.read(HEAD_BYTES))
    except (OSError, UsageError):
        return None


def is_pointer(head: bytes) -> bool:
    """Whether a file that begins with `head` is a Git LFS pointer."""
    return head.startswith(_LFS)


def is_big_endian(head: bytes) -> bool:
    """Whether a file that begins with `head` is a GGUF of a big-endian machine: its version is small read so."""
    return head.startswith(_GGUF) and len(head) >= 8 and int.from_bytes(head[4:8], "big") in _GGUF_VERSIONS
