"""Planes: every bit of a block is in exactly one plane, and joining is the inverse of splitting for any bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from references.numpy_coding import planes as numpy_planes

from edgepack.errors import ArchiveError
from edgepack.gguf.types import GGMLType
from edgepack.packaging.coding import planes
from edgepack.packaging.coding.block import Column, Layout, Part, Plane
from edgepack.packaging.coding.layouts import LAYOUTS, TAIL, kind_name, layout_of, stream_kind

BLOCKED = [layout for layout in LAYOUTS.values() if layout.block_bytes > 1]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)
def test_every_bit_of_a_block_is_in_exactly_one_plane(layout: Layout) -> None:
    uses = np.zeros((layout.block_bytes, 8), int)
    for plane in layout.planes:
        for column in plane.columns:
            assert sum(part.width for part in column.parts) <= 8
            for part in column.parts:
                uses[part.offset : part.offset + column.count, part.shift : part.shift + part.width] += 1
    assert (uses == 1).all()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)
def test_fields_that_share_bytes_cover_the_same_bytes(layout: Layout) -> None:
    """The executor moves whole fields: two parts either have the same bytes or none in common."""
    fields = {(part.offset, column.count) for p in layout.planes for column in p.columns for part in column.parts}
    covered = [offset + i for offset, count in fields for i in range(count)]
    assert len(covered) == len(set(covered))


@pytest.mark.parametrize("kind", GGMLType)
def test_every_ggml_type_has_a_layout_of_its_block(kind: GGMLType) -> None:
    layout = layout_of(kind)
    assert (layout.name, layout.block_bytes) == (kind.name, kind.block_bytes)
    assert len(layout.planes) < TAIL


def test_layout_ids_are_their_keys_and_fit_a_stream_kind() -> None:
    for identifier, layout in LAYOUTS.items():
        assert identifier == layout.id < 4096
        assert len({kind_name(stream_kind(layout, number)) for number in range(len(layout.planes))}) == len(
            layout.planes
        )


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)
@settings(deadline=None)
@given(seed=st.integers(0, 2**32), blocks=st.integers(0, 9), tail=st.integers(0, 300))
def test_joining_is_the_inverse_of_splitting_for_any_bytes(layout: Layout, seed: int, blocks: int, tail: int) -> None:
    size = blocks * layout.block_bytes + tail
    raw = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8).tobytes()
    streams = planes.split(layout, raw)
    assert [len(stream) for stream in streams] == [size for _, size in planes.plane_sizes(layout, len(raw))]
    if raw:
        assert planes.join(layout, len(raw), streams).tobytes() == raw
        for mine, expected in zip(streams, numpy_planes.split(layout, raw), strict=True):
            assert np.array_equal(mine, expected)


@pytest.mark.parametrize("layout", BLOCKED, ids=lambda layout: layout.name)
def test_any_streams_join_as_in_the_reference_over_many_tiles(layout: Layout) -> None:
    """Also streams that no splitting gives: what a hostile archive may hold."""
    size, random = 300 * layout.block_bytes + 5, np.random.default_rng(1)
    streams = [random.integers(0, 256, length, dtype=np.uint8) for _, length in planes.plane_sizes(layout, size)]
    assert np.array_equal(planes.join(layout, size, streams), numpy_planes.join(layout, size, streams))


def test_a_row_that_leaves_its_block_never_reaches_the_kernel() -> None:
    beyond = Layout(999, "beyond", 8, (Plane("all", (Column(8, (Part(1),)),)),))
    with pytest.raises(ValueError, match="leaves its block"):
        planes.split(beyond, bytes(16))


def reference_quants(kind: GGMLType, block: bytes) -> list[int]:
    """The integer weights of a block, bit by bit as ggml's dequantize_row functions read them, in their order."""
    if kind is GGMLType.Q6_K:
        ql, qh = block[:128], block[128:192]
        return [
            (ql[64 * h + 32 * (j % 2) + i] >> 4 * (j // 2) & 15) | (qh[32 * h + i] >> 2 * j & 3) << 4
            for h in range(2)
            for j in range(4)
            for i in range(32)
        ]
    qh = int.from_bytes(block[2:6], "little")
    return [(block[6 + j % 16] >> 4 * (j // 16) & 15) | (qh >> j & 1) << 4 for j in range(32)]


def test_5_bit_weights_are_mirrored_at_their_highest_bit_and_share_a_symbol() -> None:
    block = np.random.default_rng(3).integers(0, 256, 176, dtype=np.uint8).tobytes()
    qh, qs = block[16:48], block[48:176]
    weights = [
        [(qs[32 * (g // 2) + i] >> 4 * (g % 2) & 15) | (qh[i] >> g & 1) << 4 for i in range(32)] for g in range(8)
    ]
    mirrored = [[min(weight, 31 - weight) for weight in group] for group in weights]
    highest, quants = planes.split(layout_of(GGMLType.Q5_K), block)[:2]
    assert quants.tolist() == [mirrored[2 * p][i] | mirrored[2 * p + 1][i] << 4 for p in range(4) for i in range(32)]
    assert highest.tolist() == [sum((weights[g][i] > 15) << g for g in range(8)) for i in range(32)]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)
def test_flips_are_read_from_whole_columns_of_earlier_planes(layout: Layout) -> None:
    whole: set[tuple[int, int]] = set()
    for plane in layout.planes:
        for column in plane.columns:
            assert {(part.flip.offset, column.count) for part in column.parts if part.flip} <= whole
        whole |= {(column.parts[0].offset, column.count) for column in plane.columns if column.is_whole}


@pytest.mark.parametrize("kind", [GGMLType.Q5_0, GGMLType.Q6_K])
def test_high_bits_are_joined_to_their_low_bits(kind: GGMLType) -> None:
    layout = layout_of(kind)
    block = np.random.default_rng(3).integers(0, 256, kind.block_bytes, dtype=np.uint8).tobytes()
    number = [plane.name for plane in layout.planes].index("quants")
    assert planes.split(layout, block)[number].tolist() == reference_quants(kind, block)


@pytest.mark.parametrize("layout", BLOCKED, ids=lambda layout: layout.name)
def test_streams_of_a_wrong_length_are_refused(layout: Layout) -> None:
    streams = planes.split(layout, bytes(3 * layout.block_bytes))
    with pytest.raises(ArchiveError, match="expected streams"):
        planes.join(layout, 3 * layout.block_bytes, [*streams[:-1], streams[-1][:-1]])
