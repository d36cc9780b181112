"""Text of files that others made, made safe to show on a terminal: control characters stand as escapes.

A tensor's name, an error of a template or a model's answer may hold sequences that clear the screen, set the title or
write into the clipboard. What is written to files and pipes is left as it is.
"""

from __future__ import annotations

import re

# C0 but for tab and line feed, DEL, C1 (0x9b alone begins a sequence), and what turns the direction of writing.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """The text with an escape in place of every control character but tab and line feed."""
    return _CONTROLS.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
