"""Cuts a file into segments (tensors, header, any bytes) and segments into chunks; it compresses nothing."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from edgepack.errors import GGUFError, UsageError
from edgepack.files.source import FileState, open_source
from edgepack.gguf import keys
from edgepack.gguf.reader import MAGIC, GGUFHeader, read_header
from edgepack.packaging.coding.layouts import BYTES, METADATA, TEXT, grid_layout_of, layout_of
from edgepack.packaging.format import Role
from edgepack.packaging.index.member_names import check_member_name
from edgepack.trellis import LANE_BYTES, STATES, TrellisCode, trellis_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgepack.gguf.types import GGMLType
    from edgepack.packaging.coding.block import Layout

CHUNK_BYTES = max(1 << 20, LANE_BYTES)  # a chunk holds at least one whole path
_ON_GRIDS = frozenset((keys.WIRE_HOST, keys.REFINE_RATE))  # one of them in the metadata: integers were chosen for it
_HEADER_CUT = 16 << 10  # metadata values from this size on have chunks of their own: a small change stays small

_ROLES = {
    "license": Role.LICENCE, "licence": Role.LICENCE, "readme": Role.MODEL_CARD, "model_card": Role.MODEL_CARD,
    "chat_template": Role.CHAT_TEMPLATE, "certificate": Role.CERTIFICATE, "recipe": Role.RECIPE,
}  # fmt: skip


@dataclass(frozen=True)
class Segment:
    """Bytes [start, start + bytes) of a file, of which the first `tensor_bytes` are content and the rest padding.

    `columns` is the length of a row where a tensor's integers lie on grids and chunks hold whole rows; else 0.
    `code` is the trellis that they may follow; chunks then hold whole paths.
    """

    name: str
    layout: Layout
    start: int
    bytes: int
    tensor_bytes: int
    columns: int = 0
    code: TrellisCode | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes of a row on a grid; 0 where rows are not kept whole."""
        symbols = next((plane.symbols for plane in self.layout.planes if plane.zero is not None), 1)
        return self.columns // symbols * self.layout.block_bytes if self.columns else 0

    def chunks(self) -> Iterator[tuple[int, int]]:
        """(start, bytes) in the file of each chunk: whole blocks, rows or paths; padding goes with the last.

        Chunks have at most `CHUNK_BYTES`, or one path where that is longer.
        """
        unit = self.row_bytes * (self.code.rows if self.code else 1) or self.layout.block_bytes
        step = max(1, CHUNK_BYTES // unit) * unit
        count = max(1, -(-self.tensor_bytes // step))
        for number in range(count):
            start = number * step
            yield self.start + start, (self.bytes if number == count - 1 else start + step) - start


@dataclass(frozen=True)
class MemberPlan:
    """A file to be packed: `name` in the archive, `path` on disk, and its `state` when it was looked at."""

    name: str
    path: Path
    role: Role
    bytes: int
    segments: tuple[Segment, ...]
    state: FileState


def plan_member(path: Path, name: str | None = None, main: bool = False, grids: bool = False) -> MemberPlan:
    """Look at a file and cut it; its content is not read beyond a GGUF's header.

    Args:
        path: the file.
        name: in the archive; the file's own name by default.
        main: whether it must be a GGUF.
        grids: code integers by scale class though the GGUF does not say that they lie on grids.

    Raises:
        GGUFError: `main`, and not a GGUF.
        UsageError: the file is not there, or its name cannot be a member's.
    """
    if not path.is_file():
        raise UsageError(f"'{path}': no such file")
    name = path.name if name is None else name
    check_member_name(name)
    with open_source(path) as stream:
        state = FileState.of(stream.fileno())
        is_gguf = stream.read(len(MAGIC)) == MAGIC
    if is_gguf or main:
        try:
            header = read_header(path)
            sees = not main and header.get(keys.ARCHITECTURE) == keys.PROJECTOR_ARCHITECTURE
            role = Role.PROJECTOR if sees else Role.GGUF
            return MemberPlan(name, path, role, header.file_bytes, tuple(gguf_segments(header, grids)), state)
        except GGUFError:
            if main:
                raise
    size = state.bytes
    role = _ROLES.get(name.rsplit("/", 1)[-1].split(".")[0].lower(), Role.FILE)
    layout = BYTES if role is Role.FILE else TEXT
    return MemberPlan(name, path, role, size, (Segment("", layout, 0, size, size),) if size else (), state)


def gguf_segments(header: GGUFHeader, grids: bool = False) -> Iterator[Segment]:
    """The header in pieces, then each tensor in file order with the padding behind it; together all bytes."""
    on_grids = grids or not header.metadata.keys().isdisjoint(_ON_GRIDS)
    states = _trellis_states(header)
    tensors = sorted(header.tensors, key=lambda tensor: tensor.offset)
    starts = [header.data_start + tensor.offset for tensor in tensors]
    header_end = starts[0] if starts else header.file_bytes
    cuts = [0, *_header_cuts(header, min(header_end, header.data_start)), header_end]
    for start, stop in pairwise(cuts):
        yield Segment("", METADATA, start, stop - start, stop - start)
    ends = [*starts[1:], header.file_bytes][: len(starts)]
    for tensor, start, stop in zip(tensors, starts, ends, strict=True):
        columns = tensor.shape[-1] if on_grids and _has_grid(tensor.type) else 0
        if tensor.type.row_bytes(columns) > CHUNK_BYTES:
            columns = 0
        layout = grid_layout_of(tensor.type) if columns else layout_of(tensor.type)
        code = trellis_of(states, tensor.type.row_bytes(columns)) if columns and states else None
        yield Segment(tensor.name, layout, start, stop - start, tensor.nbytes, columns, code)


def _trellis_states(header: GGUFHeader) -> int:
    """What the metadata says, 0 for anything that is no trellis."""
    stated = header.metadata.get(keys.WIRE_TRELLIS)
    return int(stated.value) if stated is not None and stated.value in STATES else 0


def _has_grid(kind: GGMLType) -> bool:
    return any(plane.zero is not None for plane in grid_layout_of(kind).planes)


def _header_cuts(header: GGUFHeader, end: int) -> list[int]:
    """Positions before and after every large metadata value, increasing, inside (0, end).

    Keys are found by searching for them, one behind the other: a false find would only cut elsewhere.
    """
    with open_source(header.path) as stream:
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
