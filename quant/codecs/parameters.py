"""Parameters of a codec, read from a file and checked. Which a codec has is its own matter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.errors import CodecError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.quant.codecs.codec import Parameter


def integer(parameters: Mapping[str, Parameter], key: str, low: int, high: int) -> int:
    """The whole number `key` between `low` and `high`, both included; raises CodecError otherwise."""
    value = parameters.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise CodecError(f"parameter '{key}': expected a whole number from {low} to {high}, got {value!r}")
    return value


def number(parameters: Mapping[str, Parameter], key: str) -> float:
    """The finite number `key`; raises CodecError otherwise."""
    value = parameters.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
        raise CodecError(f"parameter '{key}': expected a finite number, got {value!r}")
    return float(value)


def choice(parameters: Mapping[str, Parameter], key: str, allowed: tuple[str, ...]) -> str:
    """The text `key`, one of `allowed`; raises CodecError otherwise."""
    value = parameters.get(key)
    if not isinstance(value, str) or value not in allowed:
        raise CodecError(f"parameter '{key}': expected one of {', '.join(allowed)}, got {value!r}")
    return value
