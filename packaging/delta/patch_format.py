"""The bytes of a patch: magic, structs and limits, and the only code that knows them.

    head | name | (operation head, payload)… | end operation | SHA-256 of everything before

Which operations make a small patch is left to `diff`, carrying them out to `patch`. FORMAT.md describes the
same bytes; a test holds the two together.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

import zstandard

from edgepack.errors import ArchiveError
from edgepack.packaging.format import MAX_NAME_BYTES, decode_name, encode_name

PATCH_MAGIC = b"\x89EPP\r\n\x1a\n"
PATCH_VERSION = 1
# magic, version, name bytes, reserved = 0, old bytes, new bytes, old fingerprint, SHA-256 of the new file
PATCH_HEAD = struct.Struct("<8sHHIQQ32s32s")
OPERATION = struct.Struct("<BBHIQQQ")  # type, reserved, reserved, payload bytes, old offset, old bytes, new bytes
MAX_PIECE_BYTES = 32 << 20  # of a delta or of new bytes, old and new: bounds the memory of a reader
FINGERPRINT_BYTES = 64 << 10  # at either end of the old file: a GGUF's header, an archive's index and footer
_MAX_WINDOW_LOG = 27


class OperationType(IntEnum):
    """How the next bytes of the new file are made."""

    END = 0  # there are none
    COPY = 1  # a range of the old file
    DELTA = 2  # a zstd frame with a range of the old file as its dictionary
    NEW = 3  # a zstd frame


@dataclass(frozen=True)
class PatchHead:
    """The beginning of a patch.

    Attributes:
        name: of the new file, without a folder.
        old_bytes: length of the old file.
        new_bytes: length of the new file.
        old_fingerprint: SHA-256 of the old file's two ends.
        new_sha256: of the new file.
    """

    name: str
    old_bytes: int
    new_bytes: int
    old_fingerprint: bytes
    new_sha256: bytes

    def encode(self) -> bytes:
        """The head with the name behind it."""
        name = encode_name(self.name)
        sizes = (self.old_bytes, self.new_bytes, self.old_fingerprint, self.new_sha256)
        return PATCH_HEAD.pack(PATCH_MAGIC, PATCH_VERSION, len(name), 0, *sizes) + name


@dataclass(frozen=True)
class Operation:
    """One step: `new_bytes` bytes of the new file from [old_offset, old_offset + old_bytes) and the payload."""

    type: OperationType
    payload_bytes: int = 0
    old_offset: int = 0
    old_bytes: int = 0
    new_bytes: int = 0

    def encode(self) -> bytes:
        """The operation's head; its payload follows."""
        return OPERATION.pack(self.type, 0, 0, self.payload_bytes, self.old_offset, self.old_bytes, self.new_bytes)


def decode_patch_head(block: bytes) -> tuple[PatchHead, int]:
    """The head, and how many bytes it has with its name.

    Raises:
        ArchiveError: not a patch, truncated, or made by a newer edgepack.
    """
    if len(block) < PATCH_HEAD.size:
        raise ArchiveError(f"expected a patch of at least {PATCH_HEAD.size} bytes, got {len(block)}")
    magic, version, name_bytes, _reserved, *sizes = PATCH_HEAD.unpack_from(block)
    if magic != PATCH_MAGIC:
        raise ArchiveError(f"expected an edgepack patch (magic {PATCH_MAGIC!r}), got {magic!r}")
    if version != PATCH_VERSION:
        raise ArchiveError(f"expected patch version {PATCH_VERSION}, got {version}: update edgepack")
    name = block[PATCH_HEAD.size : PATCH_HEAD.size + name_bytes]
    if len(name) != name_bytes or name_bytes > MAX_NAME_BYTES:
        raise ArchiveError(f"patch: expected a name of {name_bytes} bytes, got {len(name)}")
    return PatchHead(decode_name(name), *sizes), PATCH_HEAD.size + name_bytes


def decode_operation(block: bytes, head: PatchHead, written: int, where: str) -> Operation:
    """An operation, its ranges checked against both files and the limits.

    Args:
        block: its head.
        head: of the patch.
        written: bytes of the new file so far.
        where: begins the text of errors.

    Raises:
        ArchiveError: unknown type, or a range outside a file.
    """
    if len(block) < OPERATION.size:
        raise ArchiveError(f"{where}: expected {OPERATION.size} bytes, the patch ends after {len(block)}")
    number, _r1, _r2, payload, old_offset, old_bytes, new_bytes = OPERATION.unpack(block)
    try:
        operation = Operation(OperationType(number), payload, old_offset, old_bytes, new_bytes)
    except ValueError:
        raise ArchiveError(f"{where}: unknown operation {number}") from None
    if old_offset + old_bytes > head.old_bytes or written + new_bytes > head.new_bytes:
        raise ArchiveError(f"{where}: it leaves the old file of {head.old_bytes} or the new of {head.new_bytes} bytes")
    if operation.type is OperationType.COPY:
        sound = payload == 0 and old_bytes == new_bytes
    else:
        sound = max(payload, old_bytes, new_bytes) <= MAX_PIECE_BYTES
    if not sound:
        raise ArchiveError(f"{where}: {operation.type.name.lower()} of {payload}, {old_bytes} and {new_bytes} bytes")
    return operation


def encode_piece(new: bytes, old: bytes, level: int) -> bytes:
    """A zstd frame of `new`, with `old` as its dictionary unless that is empty."""
    window = max(17, min(_MAX_WINDOW_LOG, (len(new) + len(old)).bit_length()))
    parameters = zstandard.ZstdCompressionParameters.from_level(level, window_log=window, write_content_size=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters, dict_data=_dictionary(old))
    return compressor.compress(new)


def decode_piece(frame: bytes, old: bytes, new_bytes: int, where: str) -> bytes:
    """The inverse of `encode_piece`; the frame must hold exactly `new_bytes`.

    Raises:
        ArchiveError: it does not.
    """
    try:
        declared = zstandard.get_frame_parameters(frame).content_size
        if declared != new_bytes:  # before anything of that size is allocated
            raise ArchiveError(f"{where}: expected a frame of {new_bytes} bytes, it declares {declared}")
        decompressor = zstandard.ZstdDecompressor(dict_data=_dictionary(old), max_window_size=1 << _MAX_WINDOW_LOG)
        content = decompressor.decompress(frame, max_output_size=new_bytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ArchiveError(f"{where}: not a zstd frame: {error}") from None
    if len(content) != new_bytes:
        raise ArchiveError(f"{where}: expected {new_bytes} bytes, got {len(content)}")
    return content


def _dictionary(old: bytes) -> zstandard.ZstdCompressionDict | None:
    return zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if old else None
