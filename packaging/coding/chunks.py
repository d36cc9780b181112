"""One chunk: raw bytes to a record and back. Which bytes, and where records stand, is left to the callers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.errors import ArchiveError
from edgepack.packaging.coding import layouts, planes
from edgepack.packaging.coding.grid_coder import LEAST_COLUMNS, Geometry
from edgepack.packaging.coding.layouts import BYTES, LAYOUTS, TAIL, stream_kind
from edgepack.packaging.format import DIGEST_BYTES, sha256, unseal
from edgepack.packaging.records import StreamEntry, decode_chunk_head, encode_chunk

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgepack.packaging.coding.block import Layout, Plane
    from edgepack.packaging.coding.streams import StreamDecoder, StreamEncoder
    from edgepack.packaging.segments import Segment

WHOLE_BELOW_BYTES = 16 << 10  # below this, heads of many streams may cost more than planes gain: both are tried


@dataclass(frozen=True)
class EncodedChunk:
    """A chunk ready to be written.

    Attributes:
        raw: the bytes it restores to.
        plain: SHA-256 of `raw`.
        record: the whole record.
        streams: (entry, length without its dictionary) of each stream.
    """

    raw: bytes
    plain: bytes
    record: bytes
    streams: tuple[tuple[StreamEntry, int], ...]

    @property
    def stored(self) -> bytes:
        """The digest at the end of the record."""
        return self.record[-DIGEST_BYTES:]


def encode(raw: bytes, segment: Segment, encoder: StreamEncoder) -> EncodedChunk:
    """Split and compress `raw`; a small chunk is kept whole where that is smaller.

    Args:
        raw: the bytes of one of the segment's chunks.
        segment: says how they are split.
        encoder: compresses streams.
    """
    layout = segment.layout
    chunk = _encode(raw, layout, encoder, segment)
    if layout.block_bytes == 1 or len(raw) > WHOLE_BELOW_BYTES:
        return chunk
    whole = _encode(raw, BYTES, encoder)
    return whole if len(whole.record) < len(chunk.record) else chunk


def _encode(raw: bytes, layout: Layout, encoder: StreamEncoder, segment: Segment | None = None) -> EncodedChunk:
    streams = planes.split(layout, raw)
    stored: list[tuple[StreamEntry, bytes | memoryview]] = []
    lengths: list[tuple[StreamEntry, int]] = []
    for (number, _size), stream in zip(planes.plane_sizes(layout, len(raw)), streams, strict=True):
        repeats = number == TAIL or layout.planes[number].repeats
        geometry = None if number == TAIL or segment is None else _geometry(layout.planes[number], stream, segment)
        entry, content, without = encoder.encode(stream_kind(layout, number), stream, repeats, geometry)
        stored.append((entry, content))
        lengths.append((entry, without))
    return EncodedChunk(raw, sha256(raw), encode_chunk(len(raw), layout.id, stored), tuple(lengths))


def _geometry(plane: Plane, stream: NDArray[np.uint8], segment: Segment) -> Geometry | None:
    """How the stream is a matrix of integers, or None."""
    if segment.columns < LEAST_COLUMNS or plane.zero is None or len(stream) % segment.columns:
        return None
    return Geometry(segment.columns, plane.zero, len(plane.columns), plane.columns[0].count, segment.code)


def decode(record: bytes, decoder: StreamDecoder, where: str) -> NDArray[np.uint8]:
    """The raw bytes of a whole record.

    Args:
        record: from its head to its digest.
        decoder: restores streams.
        where: begins the text of errors.

    Raises:
        IntegrityError: the record differs from its digest.
        ArchiveError: the record is whole but hostile or newer than this edgepack.
    """
    unseal(record, where)
    head = decode_chunk_head(record, where)
    layout = LAYOUTS.get(head.layout)
    if layout is None:
        raise ArchiveError(f"{where}: unknown layout {head.layout}: update edgepack")
    expected = [(stream_kind(layout, number), size) for number, size in planes.plane_sizes(layout, head.raw_bytes)]
    if (got := [(entry.kind, entry.plain_bytes) for entry in head.streams]) != expected:
        raise ArchiveError(f"{where}: layout {layout.name} expects streams {expected}, got {got}")
    view, start, streams = memoryview(record), head.payload_start, []
    for entry in head.streams:
        stored = view[start : start + entry.stored_bytes]
        streams.append(decoder.decode(entry, stored, f"{where}, stream '{layouts.kind_name(entry.kind)}'"))
        start += entry.stored_bytes
    return planes.join(layout, head.raw_bytes, streams)
