"""How a file is tuned: values only. What they do is told in `tensors`, `targets` and `loop`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgepack.errors import UsageError
from edgepack.quant.tuning.parts import DEFAULT_PARTS, MOVES, PARTS, STE

if TYPE_CHECKING:
    from collections.abc import Mapping

_MOST_STEPS = 1_000_000
_MOST_RATE = 1000.0


@dataclass(frozen=True)
class TuningSettings:
    """Of one run.

    Attributes:
        steps: how many; None for as many as `minutes` give.
        minutes: wall time of all of it, the original's answers included; how many steps that makes is measured.
        rate: a factor on all rates.
        parts: which kinds of parameters are moved.
        moves: how integers are moved: `ste` or `gumbel`.
        rates: of each kind at the height of the schedule, in its units (`tensors`).
        batch: sequences a step.
        top: most probable tokens of the original that are kept at each position; the others are one.
        held_out: share of the sequences that is set aside to judge by.
        judgements: how often in a run the held-out text is judged.
        patience: judgements in a row that are worse than the file given, after which a run ends.
        seed: of the order of sequences.
        device: a torch device.
        rounds_inputs: whether inputs of quantised matrices are rounded as llama.cpp does.
        keep_seconds: time between two states kept for `resume`.
        ends_at_nan: whether a divergence that is not finite ends the run with the best state until then, instead of
            raising.

    Raises:
        UsageError: numbers out of range, or neither or both of steps and minutes.
    """

    steps: int | None = None
    minutes: float | None = None
    rate: float = 1.0
    parts: frozenset[str] = frozenset(DEFAULT_PARTS)
    moves: str = STE
    rates: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_RATES))
    batch: int = 1
    top: int = 256
    held_out: float = 0.1
    judgements: int = 4
    patience: int = 2
    seed: int = 0
    device: str = "cpu"
    rounds_inputs: bool = True
    keep_seconds: float = 60.0
    ends_at_nan: bool = False

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise UsageError("tune: expected either a number of steps or of minutes")
        if self.steps is not None and not 0 <= self.steps <= _MOST_STEPS:
            raise UsageError(f"tune: expected 0 to {_MOST_STEPS} steps, got {self.steps}")
        if self.minutes is not None and not 0 < self.minutes < float("inf"):
            raise UsageError(f"tune: expected minutes above 0, got {self.minutes}")
        if not 0 < self.rate <= _MOST_RATE:
            raise UsageError(f"tune: expected a rate above 0 and up to {_MOST_RATE:g}, got {self.rate}")
        unknown = sorted(self.parts - set(PARTS))
        if unknown or not self.parts:
            got = f"'{unknown[0]}'" if unknown else "none"
            raise UsageError(f"tune: expected parts among {', '.join(PARTS)}, got {got}")
        if self.moves not in MOVES:
            raise UsageError(f"tune: expected moves {' or '.join(MOVES)}, got '{self.moves}'")
        if self.batch < 1 or self.top < 1 or self.judgements < 1 or self.patience < 1:
            raise UsageError("tune: expected batch, top, judgements and patience of at least 1")
        if not 0 < self.held_out < 1:
            raise UsageError(f"tune: expected a share between 0 and 1 to hold out, got {self.held_out}")


DEFAULT_RATES: Mapping[str, float] = {
    "vectors": 3e-3, "rows": 1e-3, "steps": 1e-3, "codes": 2e-3, "integers": 2e-3,
}  # fmt: skip
"""By measurement: docs/tuning.md."""
