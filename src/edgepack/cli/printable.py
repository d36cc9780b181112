"""Text that a file or a model wrote, made fit for a terminal: control characters would move the cursor, or worse."""

from __future__ import annotations

# C0 without tab and line feed, and DEL, as Unicode's own pictures of them; C1 (which some terminals obey) and what
# turns the direction of writing as U+FFFD.
_TURNS = (0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"}
_TABLE = {**_PICTURES, 0x7F: 0x2421, **dict.fromkeys((*range(0x80, 0xA0), *_TURNS), 0xFFFD)}


def printable(text: str) -> str:
    """The text with a picture in place of each control character; CR LF becomes LF."""
    return text.replace("\r\n", "\n").translate(_TABLE)
