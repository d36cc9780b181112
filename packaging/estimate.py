"""How large an archive will be, from a sample of chunks: what `pack --dry-run` tells before long work."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.files.source import open_source
from edgepack.packaging.coding import chunks
from edgepack.packaging.coding.streams import DEFAULT_LEVEL, StreamEncoder
from edgepack.packaging.format import CHUNK_ENTRY, MEMBER_ENTRY, SEGMENT_ENTRY
from edgepack.packaging.segments import plan_member

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgepack.packaging.segments import Segment

SAMPLED_CHUNKS = 8  # of each layout


@dataclass(frozen=True)
class Estimate:
    """Expected length of the archive, length of what goes in, and how many bytes were tried."""

    bytes: int
    original_bytes: int
    sampled_bytes: int


def estimate_archive(gguf: Path, include: Sequence[Path] = (), level: int = DEFAULT_LEVEL) -> Estimate:
    """Compress a few chunks of each layout, evenly spread, and scale up.

    Raises:
        GGUFError: `gguf` is not a whole GGUF.
        UsageError: a file is not there.
    """
    members = [plan_member(gguf, main=True), *(plan_member(path) for path in include)]
    pieces: dict[int, list[tuple[Path, Segment, int, int]]] = defaultdict(list)
    overhead = sum(MEMBER_ENTRY.size + SEGMENT_ENTRY.size * len(member.segments) for member in members)
    for member in members:
        for segment in member.segments:
            pieces[segment.layout.id] += [(member.path, segment, *place) for place in segment.chunks()]
    encoder, total, sampled = StreamEncoder(level), float(overhead), 0
    for places in pieces.values():
        stored = tried = 0
        for path, segment, start, size in places[:: max(1, len(places) // SAMPLED_CHUNKS)]:
            with open_source(path) as stream:
                stream.seek(start)
                stored += len(chunks.encode(stream.read(size), segment, encoder).record) + CHUNK_ENTRY.size
            tried += size
        total += stored * sum(size for *_, size in places) / tried
        sampled += tried
    return Estimate(round(total), sum(member.bytes for member in members), sampled)
