"""Sizes and durations as people write and read them; it knows nothing of what is measured."""

from __future__ import annotations

import re

from edgepack.errors import UsageError

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
          "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}  # fmt: skip


def parse_size(text: str) -> int:
    """Bytes of a size such as `2.5GB` (10⁹), `2.5GiB` (2³⁰), `500MB` or `1234`.

    Raises:
        UsageError: the text is not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in _UNITS:
        raise UsageError(f"size '{text}': expected a number with B, kB, MB, GB, KiB, MiB or GiB, such as 2.5GB")
    return round(float(match[1]) * _UNITS[match[2].lower()])


def size_in_bytes(size: int | str | None) -> int | None:
    """Bytes, given as such or as text for `parse_size`; None stays None."""
    return parse_size(size) if isinstance(size, str) else size


def format_size(count: float) -> str:
    """A size in decimal units with three significant digits, as download pages print it: `4.12 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"


def format_duration(seconds: float) -> str:
    """A duration in the unit a person would choose: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
