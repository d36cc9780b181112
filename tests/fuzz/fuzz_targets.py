"""What is fuzzed: every reader of bytes that a stranger may hand over, with sound inputs to start from.

A target takes bytes and may raise nothing but edgepack's own errors. Mutating is `mutations`', driving it
`test_fuzz`'s (short, the same examples each time) and `tools/fuzz.py`'s (for hours, new ones).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from attack_bombs import grid_stream
from attack_flips import Memory, archives, contents
from attack_models import model

from edgepack.edge.fidelity.stored_reference import decode as decode_reference
from edgepack.edge.llama.check import check_runnable
from edgepack.errors import EdgepackError
from edgepack.export.formats.safetensors_file import SafetensorsFile
from edgepack.expressions import ExpressionError, is_plain
from edgepack.gguf.reader import parse_header
from edgepack.gguf.variant import is_variant, read_variant
from edgepack.packaging.archive import open_archive
from edgepack.packaging.coding.grid_coder import Geometry, decode, encode
from edgepack.packaging.delta.diff import diff_files
from edgepack.packaging.delta.patch import apply_patch
from edgepack.packaging.format import DIGEST_BYTES, sha256
from edgepack.packaging.restore.stream import unpack_stream
from edgepack.packaging.trust.policy import ANYONE
from edgepack.packaging.trust.store import read_store
from edgepack.trellis import TrellisCode

if TYPE_CHECKING:
    from collections.abc import Callable

CORPUS = Path(__file__).with_name("corpus")
LABEL = Path("fuzzed")


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        name: also the folder of its kept inputs below `corpus`.
        run: reads bytes; raises what it likes among edgepack's errors.
        seeds: sound inputs.
        seal: makes digests right again, so that a mutation reaches what lies behind them.
    """

    name: str
    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    seal: Callable[[bytes], bytes] = bytes

    def inputs(self) -> list[bytes]:
        """Seeds, and what is kept of earlier findings."""
        return [*self.seeds, *(path.read_bytes() for path in sorted((CORPUS / self.name).glob("*")))]

    def survives(self, data: bytes) -> None:
        """Run it; raises whatever is none of edgepack's errors."""
        with contextlib.suppress(EdgepackError):
            self.run(data)


def _archive(data: bytes) -> None:
    with open_archive(LABEL, ANYONE, source=Memory(data)) as archive:
        list(contents(archive))


def _pipe(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        unpack_stream(io.BytesIO(data), Path(folder) / "out", trust=ANYONE, threads=1)


def _header(data: bytes) -> None:
    header = parse_header(data, LABEL)
    check_runnable(header)
    if is_variant(header):
        read_variant(header)


def _safetensors(data: bytes) -> None:
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        file.write(data)
        file.flush()
        SafetensorsFile(Path(file.name))


def _patch(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "old").write_bytes(_OLD)
        (folder / "patch").write_bytes(data)
        apply_patch(folder / "old", folder / "patch", folder / "new", trust=ANYONE)


def _grid(data: bytes) -> None:
    for count in (4096, 64 * 64):
        decode(memoryview(data), count, "fuzzed")


def _reference(data: bytes) -> None:
    decode_reference(data, "fuzzed")


def _store(data: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        read_store(Path(file.name))


def _expression(data: bytes) -> None:
    pattern = data.decode("utf-8", "replace")[:200]
    if is_plain(pattern):
        from edgepack.expressions import Expression

        with contextlib.suppress(ExpressionError):
            Expression(pattern).search("model.layers.0." + "a" * 100)


def _sealed_end(data: bytes) -> bytes:
    """The last 32 bytes are the digest of what stands before."""
    body = data[:-DIGEST_BYTES]
    return body + sha256(body)


def _sealed_records(data: bytes) -> bytes:
    """Digests of records as far as their heads can be followed, from the header on."""
    if len(data) < 64:
        return data
    out, at = bytearray(data), 64
    out[32:64] = sha256(bytes(out[:32])) if len(out) >= 64 else out[32:64]
    while at + 8 <= len(out):
        size = int.from_bytes(out[at + 4 : at + 8], "little")
        if size < 40 or at + size > len(out):
            break
        out[at + size - 32 : at + size] = sha256(bytes(out[at : at + size - 32]))
        at += size
    return bytes(out)


_OLD = bytes(range(256)) * 64


def _patches() -> tuple[bytes, ...]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "old").write_bytes(_OLD)
        (folder / "new").write_bytes(_OLD[:5000] + b"something else" * 20 + _OLD[6000:])
        diff_files(folder / "old", folder / "new", folder / "p")
        return ((folder / "p").read_bytes(),)


def _archives() -> tuple[bytes, ...]:
    with tempfile.TemporaryDirectory() as name:
        return tuple(path.read_bytes() for path in archives(Path(name)))


def _safetensors_seed() -> bytes:
    header = json.dumps(
        {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}, "__metadata__": {"format": "pt"}}
    )
    return len(header).to_bytes(8, "little") + header.encode() + bytes(16)


def _grid_seeds() -> tuple[bytes, ...]:
    symbols = np.random.default_rng(1).integers(0, 16, 4096).astype(np.uint8)
    return (
        encode(symbols, Geometry(64, 8)),
        grid_stream(64, 64, 4, None),
        grid_stream(64, 64, 4, TrellisCode(8, 16)),
    )  # fmt: skip


def _reference_seed() -> bytes:
    from attack_bombs import large_reference

    with tempfile.TemporaryDirectory() as folder:
        return large_reference(Path(folder)).read_bytes()


def _digested(data: bytes) -> bytes:
    return data[:-32] + hashlib.sha256(data[:-32]).digest()


def targets() -> list[Target]:
    """Every target; seeds are made anew."""
    whole = _archives()
    store = json.dumps({"version": 1, "keys": [{"key": "00" * 32, "name": "a", "added": ""}]}).encode()
    return [
        Target("archive", _archive, whole),
        Target("records", _archive, whole, _sealed_records),
        Target("pipe", _pipe, whole, _sealed_records),
        Target("gguf", _header, (model()[:9000],)),
        Target("safetensors", _safetensors, (_safetensors_seed(),)),
        Target("patch", _patch, _patches(), _sealed_end),
        Target("grid", _grid, _grid_seeds()),
        Target("reference", _reference, (_reference_seed(),), _digested),
        Target("store", _store, (store,)),
        Target("expression", _expression, (rb".*\.layers\.\d+\.mlp", rb"^(?!x)[a-z]{2,}$")),
    ]
