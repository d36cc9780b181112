"""Compresses and restores single streams with zstd; what they mean is left to `layouts`.

Symbol planes hold no repeated strings, so only zstd's Huffman stage runs on them: a match finder would cost
speed and even size (`tools/symbol_coding.py`: level 10 makes the nibbles of Q4_K 7 % larger).
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Protocol

import numpy as np
import zstandard

from edgepack.errors import ArchiveError
from edgepack.packaging.coding import grid_coder
from edgepack.packaging.format import StreamCodec
from edgepack.packaging.records import StreamEntry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from edgepack.packaging.coding.grid_coder import Geometry

    Bytes = NDArray[np.uint8]

DEFAULT_LEVEL = 10
MIN_LEVEL, MAX_LEVEL = 1, 19
_MAX_WINDOW = 1 << 25  # of frames that are read; a chunk never needs more
_PROBE_BYTES = 1 << 16
_PROBE_GAIN = 0.97  # a plane is searched for repeats when a quick search of its beginning gains 3 %

# The smallest hash table and long matches only: literals remain, which Huffman codes within 1 % of their entropy.
ENTROPY_ONLY = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_FAST, hash_log=6, chain_log=6, search_log=1, min_match=7, target_length=0,
    window_log=17, write_content_size=True, write_dict_id=False,
)  # fmt: skip


def _searching(level: int) -> zstandard.ZstdCompressionParameters:
    return zstandard.ZstdCompressionParameters.from_level(level, write_content_size=True, write_dict_id=False)


class Dictionaries(Protocol):
    """Dictionaries by id."""

    def __getitem__(self, identifier: int, /) -> zstandard.ZstdCompressionDict:
        """The dictionary; raises KeyError when there is none."""
        ...


class StreamEncoder:
    """Chooses for each stream what makes it smallest; safe to share between threads.

    Args:
        level: zstd level of the streams that are searched for repeats.
        dictionaries: stream kind → (id, dictionary), used where it makes a stream smaller.
    """

    def __init__(
        self,
        level: int = DEFAULT_LEVEL,
        dictionaries: Mapping[int, tuple[int, zstandard.ZstdCompressionDict]] | None = None,
    ) -> None:
        self._level = level
        self._dictionaries = dictionaries or {}
        self._local = threading.local()

    def _compress(self, method: str, data: Bytes, kind: int = -1) -> bytes:
        """Compress with this thread's compressor for `method` and the dictionary of `kind` (-1: none)."""
        cache: dict[tuple[str, int], zstandard.ZstdCompressor] = self._local.__dict__.setdefault("compressors", {})
        if (method, kind) not in cache:
            parameters = {"entropy": ENTROPY_ONLY, "probe": _searching(1), "search": _searching(self._level)}[method]
            dictionary = self._dictionaries[kind][1] if kind in self._dictionaries else None
            cache[method, kind] = zstandard.ZstdCompressor(compression_params=parameters, dict_data=dictionary)
        return cache[method, kind].compress(data.data)

    def encode(
        self, kind: int, data: Bytes, repeats: bool, geometry: Geometry | None = None
    ) -> tuple[StreamEntry, bytes | memoryview, int]:
        """Compress one stream.

        Args:
            kind: stream kind, which decides the dictionary.
            data: uint8, at least one byte, contiguous.
            repeats: whether repeated strings are likely.
            geometry: of the matrix whose integers they are, or None.

        Returns:
            its entry, the stored bytes, and the length that they would have without the dictionary.
        """
        stored: bytes | memoryview = data.data  # copied into the record once, if nothing is smaller
        codec = StreamCodec.STORED
        for candidate in self._candidates(data, repeats):
            if len(candidate) < len(stored):
                stored, codec = candidate, StreamCodec.ZSTD
        if geometry is not None and len(candidate := grid_coder.encode(data, geometry)) < len(stored):
            stored, codec = candidate, StreamCodec.GRID
        plain_length, identifier = len(stored), 0
        if kind in self._dictionaries:
            candidate = self._compress("search" if repeats else "entropy", data, kind)
            if len(candidate) < len(stored):
                stored, codec, identifier = candidate, StreamCodec.ZSTD, self._dictionaries[kind][0]
        return StreamEntry(kind, codec, identifier, len(stored), len(data)), stored, plain_length

    def _candidates(self, data: Bytes, repeats: bool) -> list[bytes]:
        entropy = self._compress("entropy", data)
        if repeats or self._has_repeats(data, entropy):
            return [entropy, self._compress("search", data)]
        return [entropy]

    def _has_repeats(self, data: Bytes, entropy: bytes) -> bool:
        """Whether a quick search finds more than the entropy coder alone: zeros of a pruned model, equal rows."""
        probe = data[:_PROBE_BYTES]
        reference = len(entropy) if len(probe) == len(data) else len(self._compress("entropy", probe))
        return len(self._compress("probe", probe)) < _PROBE_GAIN * reference


class StreamDecoder:
    """Restores streams; trusts no declared length; safe to share between threads.

    Args:
        dictionaries: by id.
    """

    def __init__(self, dictionaries: Dictionaries) -> None:
        self._dictionaries = dictionaries
        self._local = threading.local()

    def _decompressor(self, identifier: int, where: str) -> zstandard.ZstdDecompressor:
        cache: dict[int, zstandard.ZstdDecompressor] = self._local.__dict__.setdefault("decompressors", {})
        if identifier not in cache:
            try:
                dictionary = self._dictionaries[identifier] if identifier else None
            except KeyError:
                raise ArchiveError(f"{where}: there is no dictionary {identifier}") from None
            cache[identifier] = zstandard.ZstdDecompressor(dict_data=dictionary, max_window_size=_MAX_WINDOW)
        return cache[identifier]

    def decode(self, entry: StreamEntry, stored: memoryview, where: str) -> Bytes:
        """The plain bytes of a stream, exactly `entry.plain_bytes` of them.

        Raises:
            ArchiveError: unknown codec or dictionary, or a frame that holds another number of bytes.
        """
        if entry.codec == StreamCodec.STORED:
            if len(stored) != entry.plain_bytes:
                raise ArchiveError(f"{where}: expected {entry.plain_bytes} bytes, got {len(stored)}")
            return np.frombuffer(stored, np.uint8)
        if entry.codec == StreamCodec.GRID:
            return grid_coder.decode(stored, entry.plain_bytes, where)
        if entry.codec != StreamCodec.ZSTD:
            raise ArchiveError(f"{where}: unknown codec {entry.codec}: update edgepack")
        try:
            declared = zstandard.get_frame_parameters(stored).content_size
            if declared != entry.plain_bytes:  # before anything of that size is allocated
                raise ArchiveError(f"{where}: expected a frame of {entry.plain_bytes} bytes, it declares {declared}")
            decompressor = self._decompressor(entry.dictionary, where)
            plain = decompressor.decompress(stored, max_output_size=entry.plain_bytes, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise ArchiveError(f"{where}: not a zstd frame: {error}") from None
        if len(plain) != entry.plain_bytes:
            raise ArchiveError(f"{where}: expected {entry.plain_bytes} bytes, got {len(plain)}")
        return np.frombuffer(plain, np.uint8)
