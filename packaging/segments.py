"""Cuts a file into segments (tensors, header, any bytes) and segments into chunks; it compresses nothing."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from edgepack.packaging.format import Role
from edgepack.packaging.layouts import BYTES, METADATA, TEXT, Layout, layout_of
from edgepack.packaging.member_names import check_member_name

from edgepack.errors import GGUFError, UsageError
from edgepack.gguf.reader import MAGIC, GGUFHeader, read_header

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHUNK_BYTES = 1 << 20
_HEADER_CUT = 16 << 10  # metadata values from this size on have chunks of their own: a small change stays small

_ROLES = {
    "license": Role.LICENCE, "licence": Role.LICENCE, "readme": Role.MODEL_CARD, "model_card": Role.MODEL_CARD,
    "chat_template": Role.CHAT_TEMPLATE, "certificate": Role.CERTIFICATE, "recipe": Role.RECIPE,
}  # fmt: skip


@dataclass(frozen=True)
class Segment:
    """Bytes [start, start + bytes) of a file, of which the first `tensor_bytes` are content and the rest padding."""

    name: str
    layout: Layout
    start: int
    bytes: int
    tensor_bytes: int

    def chunks(self) -> Iterator[tuple[int, int]]:
        """(start, bytes) in the file of each chunk: whole blocks, about `CHUNK_BYTES`; padding goes with the last."""
        step = CHUNK_BYTES // self.layout.block_bytes * self.layout.block_bytes
        count = max(1, -(-self.tensor_bytes // step))
        for number in range(count):
            start = number * step
            yield self.start + start, (self.bytes if number == count - 1 else start + step) - start


@dataclass(frozen=True)
class MemberPlan:
    """A file to be packed: `name` in the archive, `path` on disk."""

    name: str
    path: Path
    role: Role
    bytes: int
    segments: tuple[Segment, ...]


def plan_member(path: Path, name: str | None = None, main: bool = False) -> MemberPlan:
    """Look at a file and cut it; its content is not read beyond a GGUF's header.

    Args:
        path: the file.
        name: in the archive; the file's own name by default.
        main: whether it must be a GGUF.

    Raises:
        GGUFError: `main`, and not a GGUF.
        UsageError: the file is not there, or its name cannot be a member's.
    """
    if not path.is_file():
        raise UsageError(f"'{path}': no such file")
    name = path.name if name is None else name
    check_member_name(name)
    with path.open("rb") as stream:
        is_gguf = stream.read(len(MAGIC)) == MAGIC
    if is_gguf or main:
        try:
            header = read_header(path)
            return MemberPlan(name, path, Role.GGUF, header.file_bytes, tuple(gguf_segments(header)))
        except GGUFError:
            if main:
                raise
    size = path.stat().st_size
    role = _ROLES.get(name.rsplit("/", 1)[-1].split(".")[0].lower(), Role.FILE)
    layout = BYTES if role is Role.FILE else TEXT
    return MemberPlan(name, path, role, size, (Segment("", layout, 0, size, size),) if size else ())


def gguf_segments(header: GGUFHeader) -> Iterator[Segment]:
    """The header in pieces, then each tensor in file order with the padding behind it; together all bytes."""
    tensors = sorted(header.tensors, key=lambda tensor: tensor.offset)
    starts = [header.data_start + tensor.offset for tensor in tensors]
    header_end = starts[0] if starts else header.file_bytes
    cuts = [0, *_header_cuts(header, min(header_end, header.data_start)), header_end]
    for start, stop in pairwise(cuts):
        yield Segment("", METADATA, start, stop - start, stop - start)
    for tensor, start, stop in zip(tensors, starts, [*starts[1:], header.file_bytes], strict=True):
        yield Segment(tensor.name, layout_of(tensor.type), start, stop - start, tensor.nbytes)


def _header_cuts(header: GGUFHeader, end: int) -> list[int]:
    """Positions before and after every large metadata value, increasing, inside (0, end).

    Keys are found by searching for them, one behind the other: a false find would only cut elsewhere.
    """
    with header.path.open("rb") as stream:
        buffer = stream.read(end)
    positions, at = [], 0
    for key in header.metadata:
        raw = key.encode("utf-8", "surrogateescape")
        at = buffer.find(struct.pack("<Q", len(raw)) + raw, at)
        if at < 0:
            break
        positions.append(at)
    if header.tensors:
        raw = header.tensors[0].name.encode("utf-8", "surrogateescape")
        positions.append(buffer.find(struct.pack("<Q", len(raw)) + raw, positions[-1] if positions else 0))
    edges = [*positions, end]
    large = [(a, b) for a, b in pairwise(edges) if b - a >= _HEADER_CUT]
    return sorted({cut for pair in large for cut in pair if 0 < cut < end})
