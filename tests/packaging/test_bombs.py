"""Little that would become much: what a hostile archive costs is bounded by what it says it restores to."""

from __future__ import annotations

import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import zstandard

from edgepack.errors import ArchiveError
from edgepack.gguf.types import GGMLType
from edgepack.ordered_threads import ordered_map
from edgepack.packaging import segments
from edgepack.packaging.coding.grid_coder import Geometry, decode, encode
from edgepack.packaging.coding.layouts import LAYOUTS, grid_layout_of
from edgepack.packaging.coding.rans import ASIDE, LaneCoder
from edgepack.trellis import LANE_BYTES, TrellisCode

if TYPE_CHECKING:
    from pathlib import Path

SYMBOLS = 16 << 20  # of the largest chunk
# Decodes a stream in a process of its own and prints by how much its peak memory rose, in bytes.
CHILD = r"""
import re, sys
from pathlib import Path
from edgepack.packaging.coding.grid_coder import decode, encode, Geometry
import numpy as np
decode(memoryview(encode(np.zeros(4096, np.uint8), Geometry(64, 256))), 4096, "warm")
peak = lambda: 1024 * int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])  # own, not inherited
stored, before = Path(sys.argv[1]).read_bytes(), peak()
decode(memoryview(stored), int(sys.argv[2]), "bomb")
print(peak() - before)
"""


def head(columns: int, lanes: int, side: bytes, states: int, path_rows: int, reach: int = 3) -> bytes:
    return struct.pack("<BBBBIHBBIHH", 2, 0, 0, reach, columns, lanes, 1, 1, len(side), states, path_rows)


def zeros_by_few_lanes(rows: int, columns: int, code: TrellisCode | None = None) -> bytes:
    """A sound stream of few bytes: all integers 0, few chains of dependent steps."""
    # With paths every row stands aside, so that zeros are what they allow.
    classes, none = np.full(rows, 0 if code is None else ASIDE, np.uint8), np.zeros((rows, columns), np.uint8)
    coder = LaneCoder(classes, np.zeros(columns, np.uint8), 4, 0, 3, True, code)
    states, words = coder.encode(np.zeros((rows, columns), np.int16), None if code is None else none)
    plain = classes.tobytes() + bytes(columns) + b"\1" * columns
    side = zstandard.ZstdCompressor(level=19).compress(plain)
    return head(columns, 4, side, 1 if code is None else code.states, 0 if code is None else code.rows) + b"".join(
        (side, states.tobytes(), words.tobytes())
    )


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize(("rows", "columns"), [(SYMBOLS // 4096, 4096), (1 << 20, 16)])
@pytest.mark.parametrize("states", [0, 8])
def test_the_largest_chunk_takes_memory_for_its_bytes_and_little_more(
    tmp_path: Path, rows: int, columns: int, states: int
) -> None:
    stored = zeros_by_few_lanes(rows, columns, TrellisCode(states, 128) if states else None)
    assert len(stored) < SYMBOLS / 100
    (tmp_path / "stream").write_bytes(stored)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "stream"), str(SYMBOLS)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 50e6


@pytest.mark.parametrize("columns", [1, 2, SYMBOLS // 2, SYMBOLS])
def test_more_classes_than_a_matrix_of_blocks_has_are_refused(columns: int) -> None:
    side = zstandard.ZstdCompressor().compress(bytes(SYMBOLS // columns + 2 * columns))
    with pytest.raises(ArchiveError, match="columns do not fit"):
        decode(memoryview(head(columns, 4, side, 1, 0) + side + bytes(4)), SYMBOLS, "bomb")


def test_a_side_that_inflates_beyond_its_matrix_is_refused_unread() -> None:
    side = zstandard.ZstdCompressor().compress(bytes(200 << 20))
    with pytest.raises(ArchiveError, match="expected 192 classes"):
        decode(memoryview(head(64, 4, side, 1, 0) + side + bytes(16)), 64 * 64, "bomb")


def test_large_pieces_are_not_worked_on_side_by_side() -> None:
    running: list[int] = []

    def work(size: int) -> int:
        running.append(size)
        assert sum(running) <= 16 << 20 or len(running) == 1
        running.remove(size)
        return size

    def pieces() -> list[int]:
        return [16 << 20, 1 << 20, 20 << 20, *[1 << 20] * 40]

    assert list(ordered_map(work, pieces(), 4, size=lambda piece: piece)) == pieces()


def test_a_chunk_holds_a_whole_path() -> None:
    assert LANE_BYTES <= segments.CHUNK_BYTES


@pytest.mark.parametrize("chunk_bytes", [1, 1000, 1 << 12, 1 << 16])
@pytest.mark.parametrize("code", [None, TrellisCode(8, 128)])
def test_chunks_smaller_than_a_path_hold_one_path_each(
    monkeypatch: pytest.MonkeyPatch, chunk_bytes: int, code: TrellisCode | None
) -> None:
    """A smaller chunk divided by zero."""
    monkeypatch.setattr(segments, "CHUNK_BYTES", chunk_bytes)
    kind = GGMLType.Q8_0
    size = 300 * kind.row_bytes(256)
    segment = segments.Segment("t", grid_layout_of(kind), 64, size + 7, size, 256, code)
    cuts = list(segment.chunks())
    unit = kind.row_bytes(256) * (128 if code else 1)
    assert [start for start, _ in cuts] == [64 + n * cuts[0][1] for n in range(len(cuts))]
    assert sum(length for _, length in cuts) == size + 7
    assert all(length % unit == 0 for _, length in cuts[:-1])


def test_every_layout_decodes_a_grid_stream_of_any_plane() -> None:
    """The codec is the stream's, not the layout's: nothing in a layout protects the coder."""
    symbols = np.zeros(4096, np.uint8)
    stored = encode(symbols, Geometry(64, 256))
    assert len(LAYOUTS) > 30
    assert np.array_equal(decode(memoryview(stored), 4096, "any"), symbols)
