"""Interleaved range asymmetric numeral systems in numpy: symbols with a table each, to states and 16-bit words.

Sources: Duda, arXiv 1311.2540 (rANS); Giesen, arXiv 1402.3392 (interleaving). Symbol i is in lane i mod lanes. Tables
are `grid_tables`' and learn from the symbols before; what symbols mean is `grid_coder`'s knowledge.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from references.numpy_coding.grid_tables import CLASSES

from edgepack.errors import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from references.numpy_coding.grid_tables import LearningTables
    from references.numpy_coding.trellis_symbols import StateTracker

LOW = 1 << 16  # states lie in [LOW, 2^32)
_FIRST_LESSON = 2048  # symbols before tables first learn


def _lessons(count: int, lanes: int, learns: bool) -> Iterator[tuple[int, int]]:
    """Runs of symbols [start, stop) that are coded with the same tables, each half as long as all before it."""
    cuts = [0]
    while learns and cuts[-1] < count:
        following = max(_FIRST_LESSON, cuts[-1] * 3 // 2)
        cuts.append(min(-(-following // lanes) * lanes, count))
    return pairwise(cuts if learns else (0, count))


def encode_lanes(
    symbols: NDArray[np.int64], picks: NDArray[np.int64], tables: LearningTables, lanes: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """States and words; lanes are coded from their last symbol to their first.

    Args:
        symbols: each at least 0 and less than the tables' length.
        picks: number of every symbol's table.
        tables: fresh ones.
        lanes: how many.
    """
    frequency, start = np.empty(len(symbols), np.uint64), np.empty(len(symbols), np.uint64)
    places = tables.places[picks]
    for first, stop in _lessons(len(symbols), lanes, tables.learns):
        run = slice(first, stop)
        frequency[run] = tables.counts[places[run], symbols[run]]
        start[run] = tables.starts[places[run], symbols[run]]
        tables.learn(places[run], symbols[run], last=stop == len(symbols))
    states = np.full(lanes, LOW, np.uint64)
    parts = []
    for first in reversed(range(0, len(symbols), lanes)):
        f, s = frequency[first : first + lanes], start[first : first + lanes]
        x = states[: len(f)]
        full = x >= f << np.uint64(16)
        parts.append(x[full] & np.uint64(0xFFFF))
        x = np.where(full, x >> np.uint64(16), x)
        quotient, rest = np.divmod(x, f)
        states[: len(f)] = (quotient << np.uint64(16)) + rest + s
    return states, np.concatenate(parts[::-1])


class LaneDecoder:
    """Takes symbols out of states and words.

    Args:
        states: uint64 [lanes]; changed.
        words: all of them.
        where: begins the text of errors.
    """

    def __init__(self, states: NDArray[np.uint64], words: NDArray[np.uint64], where: str) -> None:
        self._states, self._words, self._where = states, words, where
        self._position = 0

    def decode(
        self, picks: NDArray[np.int64], tables: LearningTables, tracker: StateTracker | None
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """The inverse of `encode_lanes`.

        Args:
            picks: class of every symbol.
            tables: fresh ones; with a tracker, of both quantisers.
            tracker: tells quantisers as it is told symbols; None where all are 0.

        Returns:
            uint8 symbols and quantisers (None without a tracker).

        Raises:
            ArchiveError: words end too early or are left over, or the states do not end where they began.
        """
        symbols = np.empty(len(picks), np.uint8)
        quantisers = None if tracker is None else np.empty(len(picks), np.uint8)
        lanes = len(self._states)
        for begin, end in _lessons(len(picks), lanes, tables.learns):
            of_slot, places = tables.of_slot(), tables.places[picks[begin:end]]
            step_up = tables.places[picks[begin:end] + CLASSES] - places if quantisers is not None else None
            for first in range(begin, end, lanes):
                run = slice(first - begin, min(first + lanes, end) - begin)
                place = places[run]
                if tracker is not None and quantisers is not None and step_up is not None:
                    quantiser = quantisers[first : begin + run.stop] = tracker.quantisers(first, begin + run.stop)
                    place = places[run] = place + step_up[run] * quantiser
                symbol = symbols[first : begin + run.stop] = self._take(place, tables, of_slot)
                if tracker is not None:
                    tracker.take(first, symbol)
            tables.learn(places, symbols[begin:end], last=end == len(picks))
        if self._position != len(self._words) or (self._states != LOW).any():
            raise ArchiveError(f"{self._where}: does not end where it began: damaged or hostile")
        return symbols, quantisers

    def _take(self, place: NDArray[np.int64], tables: LearningTables, of_slot: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """One symbol of each of the first lanes."""
        x = self._states[: len(place)]
        slot = x & np.uint64(0xFFFF)
        symbol = of_slot[place, slot]
        x = tables.counts[place, symbol] * (x >> np.uint64(16)) + slot - tables.starts[place, symbol]
        needy = np.flatnonzero(x < LOW)
        if self._position + len(needy) > len(self._words):
            raise ArchiveError(f"{self._where}: its {len(self._words)} words end too early")
        x[needy] = (x[needy] << np.uint64(16)) | self._words[self._position : self._position + len(needy)]
        self._position += len(needy)
        self._states[: len(place)] = x
        return np.asarray(symbol)
