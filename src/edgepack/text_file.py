"""Text files that a user names: read by one reader, so that a bad file gets the same line and exit code by every route.

What a text is for, calibration, scoring, a template or a grammar, is its caller's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.errors import UsageError
from edgepack.files.source import read_small

if TYPE_CHECKING:
    from pathlib import Path

MAX_TEXT_BYTES = 1 << 30


def read_text(path: Path) -> str:
    """The text of a UTF-8 file of at most `MAX_TEXT_BYTES` bytes.

    A file that cannot be read is a wrong option, whatever it was wanted for: that a readable text is too short to
    calibrate on is another matter, and a CalibrationError of those who count its tokens.

    Raises:
        UsageError: absent, no file, too large, or not UTF-8.
    """
    raw = read_small(path, UsageError, MAX_TEXT_BYTES)
    try:
        return raw.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")  # as files that are opened as text
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise UsageError(f"{path}: expected UTF-8 text, byte {error.start} is {byte:#04x}") from None
