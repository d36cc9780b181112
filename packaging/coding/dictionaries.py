"""Trains zstd dictionaries for the stream kinds that they shrink, and measures that they do.

A dictionary helps only streams that are short beside it: a plane of a megabyte has learnt its own statistics
after the first few kilobytes. So only kinds of short streams are candidates, and one is kept only when what it
saves on the sample exceeds what it costs to store.
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import zstandard

from edgepack.files.source import open_source
from edgepack.packaging.coding import planes
from edgepack.packaging.coding.layouts import LAYOUTS, TAIL, stream_kind
from edgepack.packaging.coding.streams import StreamEncoder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from edgepack.packaging.segments import MemberPlan, Segment

    Samples = Mapping[int, list[NDArray[np.uint8]]]

TOTAL_BYTES = 128 << 10  # of all dictionaries together
SAMPLE_BYTES = 100_000_000
_SHORT_TEXT_BYTES = 32 << 10  # mean length of the streams of a candidate
_SHORT_PLANE_BYTES = 4 << 10  # planes hold no strings: only their statistics could be learnt beforehand
_LEAST_STREAMS = 8  # zstd's trainer refuses fewer
_SIZES = (1 << 10, 4 << 10, 16 << 10, 32 << 10)
_RECORD_COST = 88  # bytes of a dictionary's record head, digest and index entry


@dataclass(frozen=True)
class Dictionary:
    """A trained dictionary: its number in the archive, the stream kind that it is for, its bytes."""

    id: int
    kind: int
    content: bytes


def encoder_dictionaries(
    dictionaries: Sequence[Dictionary],
) -> dict[int, tuple[int, zstandard.ZstdCompressionDict]]:
    """Stream kind → (id, dictionary), as `StreamEncoder` takes them."""
    return {entry.kind: (entry.id, zstandard.ZstdCompressionDict(entry.content)) for entry in dictionaries}


def train_dictionaries(
    members: Sequence[MemberPlan], level: int, total_bytes: int = TOTAL_BYTES, sample_bytes: int = SAMPLE_BYTES
) -> tuple[Dictionary, ...]:
    """One dictionary for each stream kind that gains from it, the largest gain first.

    Args:
        members: what will be packed; only the chunks of candidate kinds are read.
        level: zstd level that will be used.
        total_bytes: of all dictionaries together.
        sample_bytes: at most so many bytes of chunks are read.
    """
    samples = _collect(members, _candidates(members), sample_bytes)
    gains = []
    for kind, streams in samples.items():
        best = max((_trained(kind, streams, level, size) for size in _SIZES), key=lambda pair: pair[0])
        if best[0] > 0:
            gains.append((*best, kind))
    chosen: list[Dictionary] = []
    for _gain, content, kind in sorted(gains, key=lambda gain: (-gain[0], gain[2])):
        if sum(len(entry.content) for entry in chosen) + len(content) <= total_bytes and len(chosen) < 255:
            chosen.append(Dictionary(len(chosen) + 1, kind, content))
    return tuple(chosen)


def _pieces(members: Sequence[MemberPlan]) -> Iterator[tuple[MemberPlan, Segment, int, int]]:
    for member in members:
        for segment in member.segments:
            for start, size in segment.chunks():
                yield member, segment, start, size


def _candidates(members: Sequence[MemberPlan]) -> set[int]:
    """Stream kinds with enough streams, short on average."""
    lengths: dict[int, list[int]] = defaultdict(list)
    for _member, segment, _start, size in _pieces(members):
        for number, stream_bytes in planes.plane_sizes(segment.layout, size):
            if number != TAIL:
                lengths[stream_kind(segment.layout, number)].append(stream_bytes)
    return {
        kind
        for kind, sizes in lengths.items()
        if len(sizes) >= _LEAST_STREAMS and sum(sizes) <= _short_bytes(kind) * len(sizes)
    }


def _short_bytes(kind: int) -> int:
    return _SHORT_TEXT_BYTES if LAYOUTS[kind // 16].block_bytes == 1 else _SHORT_PLANE_BYTES


def _collect(members: Sequence[MemberPlan], kinds: set[int], sample_bytes: int) -> Samples:
    """Streams of the candidate kinds, from the beginning of the members."""
    samples: dict[int, list[NDArray[np.uint8]]] = defaultdict(list)
    layouts = {kind // 16 for kind in kinds}
    for member, segment, start, size in _pieces(members):
        if segment.layout.id not in layouts:
            continue
        if (sample_bytes := sample_bytes - size) < 0:
            break
        with open_source(member.path) as source:
            raw = os.pread(source.fileno(), size, start)
        for (number, _size), stream in zip(
            planes.plane_sizes(segment.layout, len(raw)), planes.split(segment.layout, raw), strict=True
        ):
            kind = stream_kind(segment.layout, number)
            if kind in kinds and len(stream):
                samples[kind].append(stream)
    return samples


def _trained(kind: int, streams: list[NDArray[np.uint8]], level: int, size: int) -> tuple[int, bytes]:
    """(bytes saved on the sample less the cost of storing it, dictionary); (0, nothing) where none can be trained."""
    plain = sum(map(len, streams))
    if plain < 4 * size:
        return 0, b""
    try:
        # k and d given: zstd's COVER runs once instead of searching for them.
        content = zstandard.train_dictionary(size, [s.tobytes() for s in streams], k=64, d=8, level=level).as_bytes()
    except zstandard.ZstdError:
        return 0, b""
    encoder = StreamEncoder(level, encoder_dictionaries([Dictionary(1, kind, content)]))
    repeats = LAYOUTS[kind // 16].planes[kind % 16].repeats
    saved = 0
    for stream in streams:
        entry, _stored, without = encoder.encode(kind, stream, repeats)
        saved += without - entry.stored_bytes
    return saved - len(content) - _RECORD_COST, content
