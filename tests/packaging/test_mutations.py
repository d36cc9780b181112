"""Any bytes under a right digest: a chunk is refused, or restores to as many bytes as it says. Also run by test-asan."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.errors import ArchiveError
from edgepack.gguf.types import GGMLType
from edgepack.packaging.coding import chunks, planes
from edgepack.packaging.coding.layouts import grid_layout_of, layout_of
from edgepack.packaging.coding.streams import StreamDecoder, StreamEncoder
from edgepack.packaging.format import DIGEST_BYTES, StreamCodec, seal
from edgepack.packaging.records import decode_chunk_head
from edgepack.packaging.segments import Segment
from edgepack.trellis import TrellisCode

if TYPE_CHECKING:
    from edgepack.packaging.coding.block import Layout

COLUMNS = 256
# type, whether its integers lie on grids, trellis states
KINDS = (
    (GGMLType.Q8_0, True, 8), (GGMLType.Q8_0, True, 0), (GGMLType.Q6_K, True, 64), (GGMLType.Q4_K, True, 0),
    (GGMLType.Q5_K, False, 0), (GGMLType.Q3_K, False, 0), (GGMLType.BF16, False, 0), (GGMLType.Q5_0, False, 0),
)  # fmt: skip


def blocks_of(layout: Layout, blocks: int, step: int) -> bytes:
    """Blocks whose integers are small multiples of `step`: what the coder for grids is for; the rest is noise."""
    random = np.random.default_rng(layout.id)
    streams = []
    for number, size in planes.plane_sizes(layout, blocks * layout.block_bytes):
        zero = layout.planes[number].zero
        spreads = np.geomspace(0.2, 3, size // COLUMNS + 1).repeat(COLUMNS)[:size]  # unlike rows
        integers = ((random.normal(size=size) * spreads).round().clip(-7, 7) * step).astype(np.int16)
        noise = random.integers(0, 256, size, np.uint8)
        streams.append(noise if zero is None else (integers + zero % 256).astype(np.uint8))
    return planes.join(layout, blocks * layout.block_bytes, streams).tobytes()


@cache
def record_of(kind: GGMLType, on_grid: bool, states: int) -> bytes:
    """A sound record of a small tensor; even integers are paths whose rows all stand aside."""
    layout = grid_layout_of(kind) if on_grid else layout_of(kind)
    raw = blocks_of(layout, 48_000 // layout.block_bytes // 8 * 8, 2 if states else 1)
    code = TrellisCode(states, 8) if states else None
    segment = Segment("t", layout, 0, len(raw), len(raw), COLUMNS if on_grid else 0, code)
    return chunks.encode(raw, segment, StreamEncoder(1)).record


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(KINDS), cut=st.integers(0, 3), behind_the_head=st.booleans(),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=6),
)  # fmt: skip
def test_a_mutated_chunk_under_a_right_digest_is_refused_or_gives_what_it_says(
    kind: tuple[GGMLType, bool, int], cut: int, behind_the_head: bool, changes: list[tuple[float, int]]
) -> None:
    body = bytearray(record_of(*kind)[:-DIGEST_BYTES])
    first = decode_chunk_head(record_of(*kind), "sound").payload_start if behind_the_head else 0
    for share, flipped in changes:
        body[first + int(share * (len(body) - first))] ^= flipped
    record = seal(bytes(body[: len(body) - cut]))
    try:
        raw = chunks.decode(record, StreamDecoder({}), "chunk")
    except ArchiveError:
        return
    assert len(raw) == decode_chunk_head(record, "chunk").raw_bytes


def test_what_is_mutated_holds_every_codec() -> None:
    """Else little would be attacked."""
    codecs = [{entry.codec for entry in decode_chunk_head(record_of(*kind), "sound").streams} for kind in KINDS]
    assert all(
        (StreamCodec.GRID in found) == on_grid for found, (_kind, on_grid, _states) in zip(codecs, KINDS, strict=True)
    )
    assert {codec for found in codecs for codec in found} == set(StreamCodec)
