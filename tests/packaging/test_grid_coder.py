"""The coder of integers on grids: exact, near the entropy, and safe with hostile bytes."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from references.numpy_coding import grid_coder as numpy_coder
from references.numpy_coding import grid_tables as numpy_tables
from references.numpy_coding import trellis_symbols as numpy_symbols
from references.numpy_coding.grid_tables import TOTAL, LearningTables

if TYPE_CHECKING:
    from types import ModuleType

from edgepack.errors import ArchiveError
from edgepack.packaging.coding import grid_coder, trellis_symbols
from edgepack.packaging.coding.grid_coder import Geometry, decode, encode
from edgepack.packaging.coding.grid_tables import SHAPES, first_tables, mean_magnitudes
from edgepack.packaging.coding.rans import LaneCoder
from edgepack.packaging.coding.trellis_symbols import integers_of, quantisers, starts, transitions
from edgepack.trellis import STATES, TrellisCode

GOLDEN_STREAM = Path(__file__).parent / "golden" / "grid-stream-1.bin"


def matrix(rows: int, columns: int, seed: int, zero: int = 256, multiple: int = 1) -> np.ndarray:
    random = np.random.default_rng(seed)
    spread = np.exp(random.normal(0, 0.5, (rows, 1)) + random.normal(0, 0.5, columns)) * random.uniform(0.1, 12)
    limit = (127 if zero == 256 else zero - 1) // multiple
    integers = (random.normal(size=(rows, columns)) * spread).round().clip(-limit, limit).astype(int) * multiple
    return (integers + zero % 256).astype(np.uint8)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999), rows=st.integers(1, 40), columns=st.sampled_from([32, 64, 96]),
    zero=st.sampled_from([256, 32, 16, 8]), multiple=st.sampled_from([1, 1, 2, 3]),
)  # fmt: skip
def test_any_matrix_comes_back(seed: int, rows: int, columns: int, zero: int, multiple: int) -> None:
    symbols = matrix(rows, columns, seed, zero, multiple).reshape(-1)
    stored = encode(symbols, Geometry(columns, zero))
    assert np.array_equal(decode(memoryview(stored), symbols.size, "test"), symbols)


def test_streams_that_are_split_by_group_come_back() -> None:
    symbols = matrix(16, 512, 3, 32).reshape(-1)
    geometry = Geometry(512, 32, 8, 32)
    stream = geometry.as_stream(symbols.reshape(16, 512))
    assert np.array_equal(geometry.as_matrix(stream), symbols.reshape(16, 512))
    assert np.array_equal(decode(memoryview(encode(stream, geometry)), stream.size, "test"), stream)


@pytest.mark.parametrize("symbol", [0, 1, 255])
def test_constant_matrices_come_back_and_are_small(symbol: int) -> None:
    symbols = np.full(64 * 256, symbol, np.uint8)
    stored = encode(symbols, Geometry(256, 256))
    assert np.array_equal(decode(memoryview(stored), symbols.size, "test"), symbols)
    assert len(stored) < symbols.size / 4


def test_size_is_within_two_percent_of_the_gaussian_entropy_by_row_and_column() -> None:
    random = np.random.default_rng(0)
    rows, columns = np.exp(random.normal(0, 0.4, 512)) * 6, np.exp(random.normal(0, 0.4, 512))
    scale = rows[:, None] * columns
    integers = (random.normal(size=scale.shape) * scale).round().clip(-127, 127)
    ideal = float((np.log2(scale * np.sqrt(2 * np.pi * np.e))).sum() / 8)
    stored = encode(integers.astype(np.int8).view(np.uint8).reshape(-1), Geometry(512, 256))
    assert len(stored) < 1.02 * ideal


def test_frequencies_are_positive_sum_up_and_never_change() -> None:
    counts = first_tables(3, 127, 2)
    assert counts.min() >= 1
    assert (counts.sum(-1, dtype=np.int64) == TOTAL).all()
    # Archives depend on these numbers: made once, written down here.
    assert first_tables(0, 3, 1)[0, 12].tolist() == GOLDEN


@pytest.mark.parametrize("reach", [1, 2, 9, 127, 128])
@pytest.mark.parametrize("shape", range(SHAPES))
def test_tables_are_the_references(shape: int, reach: int) -> None:
    expected = [[numpy_tables.frequencies(c, shape, reach, q) for c in range(48)] for q in range(2)]
    assert np.array_equal(first_tables(shape, reach, 2), expected)
    assert np.array_equal(first_tables(shape, reach, 1), expected[:1])
    for both in (1, 2):
        assert np.array_equal(mean_magnitudes(shape, reach, both), numpy_tables.mean_magnitudes(shape, reach, both))


GOLDEN = [291, 3539, 15861, 26154, 15861, 3539, 291]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_bytes_are_refused_or_give_as_many_symbols(data: st.DataObject) -> None:
    symbols = matrix(8, 64, 5).reshape(-1)
    stored = bytearray(encode(symbols, Geometry(64, 256)))
    if data.draw(st.booleans()):
        del stored[data.draw(st.integers(0, len(stored) - 1)) :]
    else:
        stored[data.draw(st.integers(0, len(stored) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        assert decode(memoryview(bytes(stored)), symbols.size, "test").size == symbols.size
    except ArchiveError:
        pass


@pytest.mark.parametrize("count", [0, 1, 511, 1 << 40])
def test_another_count_is_refused(count: int) -> None:
    stored = encode(matrix(8, 64, 5).reshape(-1), Geometry(64, 256))
    with pytest.raises(ArchiveError):
        decode(memoryview(stored), count, "test")


def on_paths(
    rows: int, columns: int, code: TrellisCode, seed: int, spread: float = 3.0, aside: float = 0.1
) -> np.ndarray:
    """Integers [rows, columns] that follow a code, some rows standing aside."""
    random = np.random.default_rng(seed)
    indices = (random.normal(size=(rows, columns)) * spread).round().clip(-15, 14).astype(np.int64)
    of_state, after, result = quantisers(code), transitions(code), np.empty((rows, columns), np.int64)
    for row, apart in enumerate(random.random(rows) < aside):
        if row % code.rows == 0:
            state = starts(code, columns)
        result[row] = integers_of(indices[row], np.uint8(0) if apart else of_state[state])
        if not apart:
            state = after[indices[row] & 1, state]
    return result


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999), rows=st.integers(1, 50), columns=st.sampled_from([32, 64, 96]), height=st.integers(1, 20),
    states=st.sampled_from([4, 8, 64, 256]), multiple=st.sampled_from([1, 2, 3]), spread=st.sampled_from([0.3, 3.0]),
)  # fmt: skip
def test_integers_on_paths_come_back(
    seed: int, rows: int, columns: int, height: int, states: int, multiple: int, spread: float
) -> None:
    code = TrellisCode(states, height)
    symbols = (on_paths(rows, columns, code, seed, spread) * multiple).astype(np.uint8).reshape(-1)
    stored = encode(symbols, Geometry(columns, 256, code=code))
    assert np.array_equal(decode(memoryview(stored), symbols.size, "test"), symbols)


def test_a_path_saves_nearly_the_bit_that_its_states_tell() -> None:
    code = TrellisCode(8, 64)
    symbols = on_paths(512, 256, code, 1, aside=0.0).astype(np.uint8).reshape(-1)
    plain, told = (len(encode(symbols, Geometry(256, 256, code=known))) for known in (None, code))
    assert 8 * (plain - told) / symbols.size > 0.97


def test_integers_off_the_paths_are_coded_without_them() -> None:
    code, symbols = TrellisCode(8, 64), matrix(64, 64, 2).reshape(-1)
    assert encode(symbols, Geometry(64, 256, code=code)) == encode(symbols, Geometry(64, 256))


def test_tables_that_learn_beat_a_family_that_does_not_fit() -> None:
    random = np.random.default_rng(0)
    integers = random.choice([-9, 0, 1, 9], size=(256, 256), p=[0.1, 0.3, 0.5, 0.1]).astype(np.int16)
    rows, columns = np.full(256, 60, np.uint8), np.zeros(256, np.uint8)
    sizes = [
        len(LaneCoder(rows, columns, 16, 7, 9, learns, None).encode(integers, None)[1]) for learns in (True, False)
    ]
    assert sizes[0] < 0.7 * sizes[1]
    assert 16 * sizes[0] / integers.size < 1.08 * 1.685  # the entropy of these shares


def test_learning_keeps_every_frequency_positive_and_the_total() -> None:
    tables = LearningTables(np.array([12, 30]), 0, 40, learns=True)
    for _ in range(50):
        tables.learn(np.zeros(20000, np.int64), np.full(20000, 3), last=False)
    assert tables.counts.min() >= 1
    assert (tables.counts.sum(1) == TOTAL).all()
    assert np.array_equal(tables.of_slot()[0][:6], [0, 1, 2, 3, 3, 3])


def test_streams_of_version_1_are_still_read() -> None:
    symbols = decode(memoryview(GOLDEN_STREAM.read_bytes()), 24 * 64, "golden")
    assert hashlib.sha256(symbols.tobytes()).hexdigest() == (
        "046c3262a4d52fcbf84cd25df97e0d5f321fea870fe1567817a500179f9819f8"
    )


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_paths_are_refused_or_give_as_many_symbols(data: st.DataObject) -> None:
    code = TrellisCode(8, 4)
    symbols = on_paths(8, 64, code, 5).astype(np.uint8).reshape(-1)
    stored = bytearray(encode(symbols, Geometry(64, 256, code=code)))
    stored[data.draw(st.integers(0, len(stored) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        assert decode(memoryview(bytes(stored)), symbols.size, "test").size == symbols.size
    except ArchiveError:
        pass


@pytest.mark.parametrize(("place", "value", "text"), [(16, 9, "unknown trellis"), (18, 0, "unknown trellis")])
def test_an_unknown_trellis_is_refused(place: int, value: int, text: str) -> None:
    code = TrellisCode(8, 4)
    stored = bytearray(encode(on_paths(8, 64, code, 5).astype(np.uint8).reshape(-1), Geometry(64, 256, code=code)))
    stored[place] = value
    with pytest.raises(ArchiveError, match=text):
        decode(memoryview(bytes(stored)), 512, "test")


def outcome(module: ModuleType, stored: bytes, count: int) -> bytes | None:
    """What `module.decode` gives; None where it refuses."""
    try:
        return module.decode(memoryview(stored), count, "test").tobytes()
    except ArchiveError:
        return None


def both_decode(stored: bytes, count: int) -> None:
    """The kernel and the reference give the same bytes, or both refuse."""
    assert outcome(grid_coder, stored, count) == outcome(numpy_coder, stored, count)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999), rows=st.integers(1, 200), columns=st.sampled_from([4, 7, 32, 96, 300]),
    states=st.sampled_from([0, *STATES]), height=st.integers(1, 64), multiple=st.sampled_from([1, 2, 3]),
    spread=st.sampled_from([0.3, 2.0, 6.0]), aside=st.sampled_from([0.0, 0.1, 1.0]),
)  # fmt: skip
def test_streams_are_the_references_bit_for_bit(
    seed: int, rows: int, columns: int, states: int, height: int, multiple: int, spread: float, aside: float
) -> None:
    code = TrellisCode(states, height) if states else None
    integers = matrix(rows, columns, seed) if code is None else on_paths(rows, columns, code, seed, spread, aside)
    symbols = (integers * multiple).astype(np.uint8).reshape(-1)
    stored = grid_coder.encode(symbols, Geometry(columns, 256, code=code))
    assert stored == numpy_coder.encode(symbols, numpy_coder.Geometry(columns, 256, code=code))
    assert np.array_equal(decode(memoryview(stored), symbols.size, "test"), symbols)
    both_decode(stored, symbols.size)


def hostile_stream(data: st.DataObject) -> tuple[bytes, int]:
    """A stream with a sound side, but any head that fits it and any states and words."""
    rows, columns = data.draw(st.integers(1, 40)), data.draw(st.integers(4, 40))
    reach = data.draw(st.sampled_from([1, 2, 30, 127]))  # the reference has no symbol 256
    lanes, version = data.draw(st.integers(4, columns)), data.draw(st.sampled_from([1, 2]))
    random = np.random.default_rng(data.draw(st.integers(0, 999)))
    side = zstandard.ZstdCompressor().compress(random.integers(0, 256, rows + 2 * columns, np.uint8).tobytes())
    head = struct.pack("<BBBBIHBBI", version, 32, data.draw(st.integers(0, 7)), reach, columns, lanes, 1, 1, len(side))
    paths = struct.pack("<HH", data.draw(st.sampled_from([1, *STATES])), data.draw(st.integers(1, 9)))
    words = random.integers(0, 256, 4 * lanes + 2 * data.draw(st.integers(0, rows * columns)), np.uint8)
    return head + (paths if version == 2 else b"") + side + words.tobytes(), rows * columns


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_hostile_streams_end_as_with_the_reference(data: st.DataObject) -> None:
    stored, count = hostile_stream(data)
    both_decode(stored, count)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_mutated_streams_end_as_with_the_reference(data: st.DataObject) -> None:
    code = data.draw(st.sampled_from([None, TrellisCode(8, 4), TrellisCode(64, 16)]))
    symbols = (matrix(40, 64, 5) if code is None else on_paths(40, 64, code, 5)).astype(np.uint8).reshape(-1)
    stored = bytearray(encode(symbols, Geometry(64, 256, code=code)))
    for _ in range(data.draw(st.integers(1, 4))):
        stored[data.draw(st.integers(20, len(stored) - 1))] ^= data.draw(st.integers(1, 255))
    both_decode(bytes(stored), symbols.size)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 99), rows=st.integers(1, 30), columns=st.integers(1, 40), states=st.sampled_from(STATES),
    height=st.integers(1, 9), broken=st.integers(0, 3),
)  # fmt: skip
def test_paths_are_recognised_as_by_the_reference(
    seed: int, rows: int, columns: int, states: int, height: int, broken: int
) -> None:
    code, random = TrellisCode(states, height), np.random.default_rng(seed)
    integers = on_paths(rows, columns, code, seed) * random.choice([1, 1, 2, 3, 6], columns)
    integers[random.integers(0, rows, broken), random.integers(0, columns, broken)] += 1
    multiples = np.gcd.reduce(integers, axis=0).clip(1, 255)
    expected, got = (module.as_indices(integers, multiples, code) for module in (numpy_symbols, trellis_symbols))
    assert (expected is None) == (got is None)
    if expected is not None and got is not None:
        for name in ("indices", "quantisers", "multiples", "aside"):
            assert np.array_equal(getattr(expected, name), getattr(got, name)), name
    aside, first = random.random(rows) < 0.2, starts(code, columns)
    (chosen, keeps), (other, kept) = (
        module.follow(integers, aside, first, code) for module in (numpy_symbols, trellis_symbols)
    )
    assert np.array_equal(keeps, kept)
    assert np.array_equal(chosen[:, keeps], other[:, keeps])


def test_a_stream_of_one_lane_is_refused() -> None:
    """No encoder writes one: it would be a single chain of dependent steps (13 s a MiB when they were numpy's)."""
    stored = bytearray(encode(matrix(8, 64, 5).reshape(-1), Geometry(64, 256)))
    stored[8:10] = struct.pack("<H", 1)
    with pytest.raises(ArchiveError, match="expected 4 to 256 lanes"):
        decode(memoryview(bytes(stored)), 512, "test")


@pytest.mark.parametrize(("lanes", "reach"), [(0, 3), (257, 3), (4, 0), (4, 129)])
def test_a_coder_beyond_the_kernels_bounds_is_never_made(lanes: int, reach: int) -> None:
    with pytest.raises(ValueError, match="expected up to 256 lanes"):
        LaneCoder(np.zeros(4, np.uint8), np.zeros(4, np.uint8), lanes, 0, reach, True, None)


@pytest.mark.parametrize("version", [2, 3])
def test_streams_of_version_2_are_still_read_and_written_alike(version: int) -> None:
    """Files 2 and 3 are of version 2, without and with paths; made by the numpy coder that first wrote it."""
    code = TrellisCode(8, 16) if version == 3 else None
    symbols = (matrix(64, 96, 7) if code is None else on_paths(64, 96, code, 7)).astype(np.uint8).reshape(-1)
    golden = (Path(__file__).parent / "golden" / f"grid-stream-{version}.bin").read_bytes()
    assert np.array_equal(decode(memoryview(golden), symbols.size, "golden"), symbols)
    assert encode(symbols, Geometry(96, 256, code=code)) == golden
