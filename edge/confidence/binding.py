"""What a calibration is bound to: everything in a file that decides what it answers, and nothing that does not.

A calibration lies in the metadata of the very file that it is about, so the file's own digest cannot be in it.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING

from edgepack.file_digest import file_sha256
from edgepack.files.source import open_source
from edgepack.gguf import keys
from edgepack.gguf.writer import encode_header
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgepack.edge.llama.options import Adapter
    from edgepack.gguf.reader import GGUFHeader
    from edgepack.progress import Progress

_BLOCK_BYTES = 8 << 20
_OWN = "edgepack."
_DECIDING = (keys.ARCHITECTURE,)  # of `general.`, whose other keys are names, authors, links and counts


def contents_digest(path: Path, header: GGUFHeader, progress: Progress = silent) -> str:
    """SHA-256, hexadecimal, of what a GGUF answers by: its settings, its vocabulary, its tensors.

    Left out are edgepack's own notes and what `general.` says of name and origin, so that a certificate, a card or a
    calibration that is put into the file later changes nothing; in are the chat template and every tensor's name,
    shape, type and bytes. Padding and the order of keys do not count.

    Args:
        path: a plain GGUF.
        header: its header.
        progress: told of bytes.
    """
    deciding = {
        key: header.metadata[key]
        for key in sorted(header.metadata)
        if key in _DECIDING or not key.startswith((_OWN, keys.GENERAL))
    }
    digest = hashlib.sha256(encode_header(deciding, (), 1))
    tensors = sorted(header.tensors, key=lambda info: info.name)
    with (
        open_source(path) as source,
        progress("digesting", sum(info.nbytes for info in tensors)) as advance,
    ):
        for info in tensors:
            name = info.name.encode("utf-8", "surrogateescape")
            told = struct.pack(f"<Q{len(info.shape)}Q", len(info.shape), *info.shape)
            digest.update(struct.pack("<Q", len(name)) + name + struct.pack("<I", info.type) + told)
            source.seek(header.data_start + info.offset)
            left = info.nbytes
            while left and (block := source.read(min(left, _BLOCK_BYTES))):
                digest.update(block)
                advance(len(block))
                left -= len(block)
    return digest.hexdigest()


def adapter_digests(adapters: Sequence[Adapter]) -> list[str]:
    """`SHA-256:strength` of each adapter, sorted: with others a model answers otherwise."""
    return sorted(f"{file_sha256(adapter.path)}:{adapter.scale:g}" for adapter in adapters)
