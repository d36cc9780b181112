"""A grid of sparsities: measures each and picks one by a stated rule.

How a level is made and measured is the caller's; this knows only the figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.errors import CheckFailedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True)
class Level:
    """What one sparsity gave.

    Attributes:
        sparsity: the share of weights that went.
        perplexity: of the pruned file.
        agreement: share of tokens with the original's first choice.
        archive_bytes: of the packed file, where zeros save bytes.
        steps: of learning while it was pruned; 0 for one shot.
    """

    sparsity: float
    perplexity: float
    agreement: float
    archive_bytes: int
    steps: int = 0


def ordered(sparsities: Sequence[float]) -> list[float]:
    """The levels of a grid, each once, sparsest last.

    Raises:
        UsageError: no level, or one outside 0 … 1 (1 not included).
    """
    if not sparsities or not all(0 <= sparsity < 1 for sparsity in sparsities):
        raise UsageError(f"prune grid: expected sparsities from 0 to 1 (not included), got {list(sparsities)}")
    return sorted(set(sparsities))


def measure_levels(
    sparsities: Sequence[float], measure: Callable[[float, int], Level], steps: Sequence[int] = (0,)
) -> list[Level]:
    """Every level, in the order of `ordered`, each with as many steps of recovery as asked for; raises as it does.

    Args:
        sparsities: the levels.
        measure: makes and measures one, given its sparsity and its steps.
        steps: of learning: 0 is one shot.
    """
    return [measure(sparsity, count) for sparsity in ordered(sparsities) for count in steps]


def choose_level(levels: Sequence[Level], min_agreement: float) -> Level:
    """The smallest archive among the levels that agree with the original in `min_agreement` of all tokens or more.

    Of equal archives the one that agrees more.

    Raises:
        CheckFailedError: no level agrees that much; the text names the best.
    """
    good = [level for level in levels if level.agreement >= min_agreement]
    if not good:
        best = max(levels, key=lambda level: level.agreement)
        raise CheckFailedError(
            f"prune grid: expected an agreement of {min_agreement:g} or more, the best is {best.agreement:.4f} at"
            f" sparsity {best.sparsity:g}{f' with {best.steps} steps of recovery' if best.steps else ''}"
        )
    return min(good, key=lambda level: (level.archive_bytes, -level.agreement))
