"""Checks of single fields of a request; each raises RequestError that names the field and says what was got."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from edgepack.edge.serve.protocol.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable

_SHOWN = 60  # characters of a wrong value that an error repeats


def shown(value: object) -> str:
    """A wrong value, as an error shows it: short, and never a whole prompt."""
    text = repr(value) if not isinstance(value, (dict, list, str)) or len(value) < _SHOWN else type(value).__name__
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def wrong(param: str, expected: str, got: object) -> RequestError:
    """`param: expected …, got …`."""
    return RequestError(f"{param}: expected {expected}, got {shown(got)}", param)


def number(body: dict[str, Any], name: str, low: float, high: float) -> None:
    """A finite number from `low` to `high` (both included); null means the default."""
    value = body.get(name)
    if value is None:
        body.pop(name, None)
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise wrong(name, "a number", value)
    if not low <= value <= high:
        raise wrong(name, f"a number from {low:g} to {high:g}", value)


def integer(body: dict[str, Any], name: str, low: int, high: int) -> None:
    """A whole number from `low` to `high` (both included); null means the default."""
    value = body.get(name)
    if value is None:
        body.pop(name, None)
        return
    if isinstance(value, float) and value.is_integer():
        body[name] = value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong(name, "a whole number", value)
    if not low <= value <= high:
        raise wrong(name, f"{low} to {high}", value)


def boolean(body: dict[str, Any], name: str) -> bool:
    """Its value; null is false."""
    value = body.get(name)
    if value is None:
        body.pop(name, None)
        return False
    if not isinstance(value, bool):
        raise wrong(name, "true or false", value)
    return value


def text(body: dict[str, Any], name: str, most: int) -> str | None:
    """A text of at most `most` characters; null is none."""
    value = body.get(name)
    if value is None:
        body.pop(name, None)
        return None
    if not isinstance(value, str):
        raise wrong(name, "a text", value)
    if len(value) > most:
        raise RequestError(f"{name}: expected at most {most} characters, got {len(value)}", name)
    return value


def one_of(body: dict[str, Any], name: str, values: Iterable[str]) -> None:
    """One of `values`, or absent."""
    value, allowed = body.get(name), tuple(values)
    if value is not None and value not in allowed:
        raise wrong(name, f"one of {', '.join(allowed)}", value)


def refused(body: dict[str, Any], name: str, why: str) -> None:
    """A field that asks for something this server does not do."""
    if body.get(name) not in (None, False, [], {}, ""):
        raise RequestError(f"{name}: {why}", name)
