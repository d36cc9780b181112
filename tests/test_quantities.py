"""Sizes and durations as people write and read them."""

from __future__ import annotations

import pytest

from edgepack.errors import UsageError
from edgepack.quantities import format_duration, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2.5GB", 2_500_000_000), ("2.5GiB", 2_684_354_560), ("500MB", 500_000_000), ("1234", 1234), (" 1 kB ", 1000)],
)
def test_sizes_are_read_in_decimal_and_binary_units(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1e9", "5 parsecs", "nan"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected a number"):
        parse_size(text)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (4_309_952, "4.31 MB"),
        (999_600, "1 MB"),
        (2.5e9, "2.5 GB"),
        (7e12, "7 TB"),
    ],
)
def test_sizes_are_printed_in_human_units(count: float, expected: str) -> None:
    assert format_size(count) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.04, "0.0 s"), (12.3, "12 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations_are_printed_in_human_units(seconds: float, expected: str) -> None:
    assert format_duration(seconds) == expected
