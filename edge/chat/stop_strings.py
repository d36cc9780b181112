"""Ends an answer at given texts without ever showing a part of one; it knows nothing of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


def until_stop(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """The pieces up to the first of `stops`, which is left out.

    What could be the beginning of a stop text is held back until it is clear that it is not.

    Args:
        pieces: text as it comes.
        stops: texts that end it; empty ones are ignored.
    """
    stops = [stop for stop in stops if stop]
    held = ""
    for piece in pieces:
        held += piece
        cut = _first(held, stops)
        undecided = len(held) - max((_overlap(held, stop) for stop in stops), default=0)
        if cut is not None and cut <= undecided:  # else a stop text that begins earlier may still come to its end
            yield from _non_empty(held[:cut])
            return
        yield from _non_empty(held[:undecided])
        held = held[undecided:]
    yield from _non_empty(held[: _first(held, stops)])


def _first(text: str, stops: Sequence[str]) -> int | None:
    """Where the first of `stops` begins in `text`, or None."""
    return min((place for stop in stops if (place := text.find(stop)) >= 0), default=None)


def _non_empty(text: str) -> Iterator[str]:
    if text:
        yield text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
