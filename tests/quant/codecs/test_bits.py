"""Bit streams are exact: held against hand-computed bytes and against Python's big integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.quant.codecs import bits


def test_hand_computed_streams() -> None:
    # 5, 3, 6 in three bits, least significant first: 101 then 110 then 011 → 0b10_011_101, 0b1.
    assert bits.pack(np.array([5, 3, 6]), 3).tolist() == [0b10011101, 0b1]
    assert bits.pack(np.array([0x1, 0xA, 0xF]), 4).tolist() == [0xA1, 0x0F]
    assert bits.pack(np.array([0xABC, 0x123]), 12).tolist() == [0xBC, 0x3A, 0x12]
    assert bits.pack(np.array([0x1234]), 16).tolist() == [0x34, 0x12]


@given(st.data(), st.integers(1, 16), st.integers(0, 70))
def test_a_stream_is_one_little_endian_integer_and_any_range_reads_back(
    data: st.DataObject, width: int, count: int
) -> None:
    values = data.draw(st.lists(st.integers(0, (1 << width) - 1), min_size=count, max_size=count))
    stream = bits.pack(np.array(values, dtype=np.int64), width)
    assert stream.size == bits.packed_bytes(count, width)
    assert int.from_bytes(stream.tobytes(), "little") == sum(value << (i * width) for i, value in enumerate(values))
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))
    assert bits.unpack(stream, width, start, stop).tolist() == values[start:stop]


@pytest.mark.parametrize("width", range(1, 17))
def test_the_largest_number_survives(width: int) -> None:
    values = np.full(9, (1 << width) - 1)
    assert bits.unpack(bits.pack(values, width), width, 0, 9).tolist() == values.tolist()
