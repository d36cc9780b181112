"""Image files looked at before anything decodes them: kind and size, by their first bytes; pixels are `image`'s.

Kinds are those that llama.cpp's mtmd reads (stb_image) and that say their size in front: PNG, JPEG, GIF, BMP.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_FILE_BYTES = 64 << 20
MAX_SIDE = 1 << 14  # pixels; mtmd's own sizes are 32-bit numbers that are multiplied without a look
MAX_PIXELS = 64 << 20  # three bytes each, decoded, and four times that as floats
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # JPEG's start-of-frame markers (ITU T.81, table B.1)
_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})  # markers without a length


@dataclass(frozen=True)
class Picture:
    """An image as it may be given to a projector.

    Attributes:
        label: names it in messages.
        encoded: the file's bytes; empty where there are pixels.
        pixels: uint8 [height, width, 3], red, green, blue; None where the file is still to be decoded.
    """

    label: str
    encoded: bytes = b""
    pixels: NDArray[np.uint8] | None = None


def read_picture(image: str | Path | bytes) -> Picture:
    """An image out of a file, or its bytes, checked to be one of a size that can be decoded.

    Raises:
        UsageError: no such file, no image of a known kind, or a huge one.
    """
    if isinstance(image, bytes):
        return picture_of(image, f"{len(image)} bytes")
    path = Path(image)
    if not path.is_file():
        raise UsageError(f"image '{path}': no such file")
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise UsageError(f"image '{path}': expected at most {MAX_FILE_BYTES >> 20} MiB, got {size >> 20}")
    return picture_of(path.read_bytes(), str(path))


def picture_of(encoded: bytes, label: str) -> Picture:
    """As `read_picture`, of an image's bytes."""
    if len(encoded) > MAX_FILE_BYTES:
        raise UsageError(f"image '{label}': expected at most {MAX_FILE_BYTES >> 20} MiB, got {len(encoded) >> 20}")
    found = image_size(encoded)
    if found is None:
        raise UsageError(f"image '{label}': expected a PNG, JPEG, GIF or BMP file, got something else or a part of one")
    width, height = found
    if not 0 < width <= MAX_SIDE or not 0 < height <= MAX_SIDE or width * height > MAX_PIXELS:
        raise UsageError(
            f"image '{label}': expected sides of at most {MAX_SIDE} and {MAX_PIXELS >> 20} million pixels in all, got"
            f" {width} x {height}"
        )
    return Picture(label, encoded)


def image_size(encoded: bytes) -> tuple[int, int] | None:
    """(width, height) that an image file says in front; None for anything that is no image of a known kind."""
    if encoded[:16] == b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" and len(encoded) >= 24:
        width, height = struct.unpack(">II", encoded[16:24])
        return width, height
    if encoded[:6] in (b"GIF87a", b"GIF89a") and len(encoded) >= 10:
        width, height = struct.unpack("<HH", encoded[6:10])
        return width, height
    if encoded[:2] == b"BM" and len(encoded) >= 26 and encoded[14:18] >= b"\x28\0\0\0":
        width, height = struct.unpack("<ii", encoded[18:26])
        return width, abs(height)
    return _jpeg_size(encoded) if encoded[:3] == b"\xff\xd8\xff" else None


def _jpeg_size(encoded: bytes) -> tuple[int, int] | None:
    """Width and height of the first frame: segments are walked by their lengths, never searched."""
    at = 2
    while at + 4 <= len(encoded) and encoded[at] == 0xFF:
        marker = encoded[at + 1]
        if marker == 0xFF or marker in _ALONE:  # filling, or a marker without a segment
            at += 1 if marker == 0xFF else 2
            continue
        if marker in _FRAMES:
            if at + 9 > len(encoded):
                return None
            height, width = struct.unpack(">HH", encoded[at + 5 : at + 9])
            return width, height
        at += 2 + struct.unpack(">H", encoded[at + 2 : at + 4])[0]
    return None
