"""What every node has done so far, for people and for scripts; it does no work."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgepack.quantities import format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgepack.pipeline.cluster.backend import Answer
    from edgepack.pipeline.outline import Json

SECONDS = 30.0  # between two lines for people


@dataclass
class NodeTally:
    """One node.

    Attributes:
        pieces: of work that it answered.
        seconds: of work.
        peak: most memory of one of its workers, in bytes.
        bytes: that it sent.
    """

    pieces: int = 0
    seconds: float = 0.0
    peak: int = 0
    bytes: int = 0


@dataclass
class Board:
    """All nodes.

    Attributes:
        tell: told a line now and then.
        nodes: name → what it did.
        losses: why work had to be done again, each as often as it happened.
    """

    tell: Callable[[str], object]
    nodes: dict[str, NodeTally] = field(default_factory=dict)
    losses: list[str] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)
    _told: float = field(default_factory=time.monotonic)

    def answer(self, answer: Answer) -> None:
        """Count an answer."""
        tally = self.nodes.setdefault(answer.node, NodeTally())
        tally.pieces += 1
        tally.seconds += answer.seconds
        tally.peak = max(tally.peak, answer.peak)
        tally.bytes += bytes_of(answer.value)
        if time.monotonic() - self._told >= SECONDS:
            self._told = time.monotonic()
            self.tell(self.line())

    def lost(self, why: str) -> None:
        """Count work that has to be done again."""
        self.losses.append(why)
        self.tell(f"cluster: a piece of work is done again: {why}")

    def line(self) -> str:
        """What every node has done, in one line."""
        passed = max(time.monotonic() - self._began, 1e-9)
        told = (
            f"{name} {tally.pieces} pieces, {tally.seconds / passed:.1f} processors busy,"
            f" peak {format_size(tally.peak)}"
            for name, tally in sorted(self.nodes.items())
        )
        return f"cluster: {'; '.join(told)}"

    def as_json(self) -> dict[str, Json]:
        """What scripts read."""
        return {
            "nodes": [
                {"node": name, "pieces": tally.pieces, "seconds": round(tally.seconds, 3), "peak_bytes": tally.peak,
                 "sent_bytes": tally.bytes}
                for name, tally in sorted(self.nodes.items())
            ],
            "done_again": len(self.losses),
        }  # fmt: skip


def bytes_of(value: Any) -> int:
    """About what a value takes on the wire: of arrays, bytes, and what holds them."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return len(value)
    if isinstance(value, (tuple, list)):
        return sum(map(bytes_of, value))
    if isinstance(value, dict):
        return sum(map(bytes_of, value.values()))
    return int(getattr(value, "nbytes", 0) or 0)
