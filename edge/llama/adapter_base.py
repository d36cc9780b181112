"""Which model an adapter was made for: what its file says of that, held against the model that it is to be applied to.

Names and shapes are held against every adapter; digests only against those that edgepack trained, which state them.
"""

from __future__ import annotations

import hashlib
import re
import struct
from typing import TYPE_CHECKING

from edgepack.errors import AdapterError
from edgepack.files.source import open_source
from edgepack.gguf import keys

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from edgepack.gguf.reader import GGUFHeader
    from edgepack.gguf.types import TensorInfo

_SAMPLE = 4096  # bytes of a tensor's beginning that go into a file's digest
_MOST_VECTOR = 1 << 26  # bytes of a vector; larger ones are no norm or bias
_FACTOR = re.compile(r"^(?P<tensor>.+)\.lora_(?P<part>[ab])$")
_EMBEDDING = "token_embd.weight"


def vectors_digest(path: Path, header: GGUFHeader) -> str:
    """SHA-256, hexadecimal, of a model's names and shapes and of its norms and biases.

    These are float32 in a file of any type: it is the same for all quantisations of one model, and another for another
    model of the same shape.
    """
    chosen = [info for info in header.tensors if len(info.shape) == 1 and info.nbytes <= _MOST_VECTOR]
    return _digest(path, header, header.tensors, {info.name: info.nbytes for info in chosen}, types=False)


def file_digest(path: Path, header: GGUFHeader) -> str:
    """SHA-256, hexadecimal, of names, shapes, types and the first bytes of every tensor: of this one quantisation."""
    sampled = {info.name: min(info.nbytes, _SAMPLE) for info in header.tensors}
    return _digest(path, header, header.tensors, sampled, types=True)


def _digest(path: Path, header: GGUFHeader, tensors: Iterable[TensorInfo], read: dict[str, int], *, types: bool) -> str:
    digest = hashlib.sha256()
    with open_source(path) as stream:
        for info in sorted(tensors, key=lambda each: each.name):
            name = info.name.encode("utf-8", "surrogateescape")
            told = struct.pack(f"<Q{len(info.shape)}Q", len(info.shape), *info.shape)
            digest.update(struct.pack("<Q", len(name)) + name + told)
            if types:
                digest.update(struct.pack("<I", info.type))
            if info.name in read:
                stream.seek(header.data_start + info.offset)
                digest.update(stream.read(read[info.name]))
    return digest.hexdigest()


def check_base(adapter: GGUFHeader, model: GGUFHeader, path: Path | None) -> None:
    """Check that an adapter was made for a model.

    Args:
        adapter: of a GGUF LoRA.
        model: of the model.
        path: the model's plain GGUF, for digests; None where there is none, as of one that is read out of its archive.

    Raises:
        AdapterError: it was made for another model, or, as a recovery adapter, for another file of it.
    """
    kind = adapter.get(keys.ARCHITECTURE)
    if kind != model.get(keys.ARCHITECTURE):
        raise _other(adapter, f"its architecture is {kind!r:.40}, the model's {model.get(keys.ARCHITECTURE)!r:.40}")
    _check_shapes(adapter, model)
    if path is None:
        return
    stated = adapter.get(keys.ADAPTER_BASE)
    if stated is not None and stated != vectors_digest(path, model):
        raise _other(adapter, "norms and biases differ from those that it was trained on")
    stated = adapter.get(keys.ADAPTER_BASE_FILE)
    if stated is not None and stated != file_digest(path, model):
        raise _other(adapter, "it gives back what another file of this model has lost", "file")


def _check_shapes(adapter: GGUFHeader, model: GGUFHeader) -> None:
    own = {info.name: info.shape for info in model.tensors}
    for info in adapter.tensors:
        match = _FACTOR.match(info.name)
        if match is None:
            continue
        shape = own.get(match["tensor"])
        if shape is None:
            raise _other(adapter, f"the model has no tensor '{match['tensor']:.80}'")
        if match["tensor"] == _EMBEDDING or len(shape) != 2 or len(info.shape) != 2:
            continue
        expected, got = (shape[1], info.shape[1]) if match["part"] == "a" else (shape[0], info.shape[0])
        if expected != got:
            raise _other(adapter, f"'{info.name:.80}' is of width {got}, the model's tensor of {expected}")


def _other(adapter: GGUFHeader, why: str, what: str = "model") -> AdapterError:
    return AdapterError(f"adapter '{adapter.path}': it was made for another {what}: {why}")
