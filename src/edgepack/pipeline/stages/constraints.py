"""Holds what a stage measured against the recipe's constraints. What is measured, and when, is `stages.run`'s."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.quantities import format_size

if TYPE_CHECKING:
    from edgepack.pipeline.stages.records import StageResult
    from edgepack.pipeline.stages.staged_recipe import Constraints


@dataclass(frozen=True)
class Verdict:
    """How one constraint went at one stage.

    Attributes:
        name: of the constraint.
        value: what is held against the bar: of an accuracy drop the greater end of its interval.
        limit: the bar.
        met: whether it is cleared.
        text: one sentence with the figures.
    """

    name: str
    value: float
    limit: float
    met: bool
    text: str


def verdicts_on(result: StageResult, constraints: Constraints) -> tuple[Verdict, ...]:
    """How every constraint went on which the stage measured something."""
    found, figures = [], result.figures
    if constraints.max_accuracy_drop is not None and "accuracy_drop_high" in figures:
        drop, high = figures["accuracy_drop"], figures["accuracy_drop_high"]
        text = (f"accuracy drop {drop:.4f}, upper end of the interval {high:.4f}, must be at most"
                f" {constraints.max_accuracy_drop:g} ({figures['tokens']} tokens)")  # fmt: skip
        met = high <= constraints.max_accuracy_drop
        found.append(Verdict("max_accuracy_drop", high, constraints.max_accuracy_drop, met, text))
    if constraints.max_memory is not None:
        peak = result.peak_memory_bytes
        text = f"peak memory {format_size(peak)}, must be at most {format_size(constraints.max_memory)}"
        found.append(Verdict("max_memory", peak, constraints.max_memory, peak <= constraints.max_memory, text))
    return (*found, *_on_size(result, constraints))


def _on_size(result: StageResult, constraints: Constraints) -> list[Verdict]:
    """A stage before the one that ships knows the least that its file can become: that must clear the bars already."""
    figures, found = result.figures, []
    if "least_bytes" not in figures:
        return []
    size, ratio = figures["least_bytes"], figures["greatest_ratio"]
    final = size == figures.get("bytes")
    which = "" if final else "at the best "
    if constraints.max_size is not None:
        text = f"{which}{format_size(size)} ({size} bytes), must be at most {format_size(constraints.max_size)}"
        found.append(Verdict("max_size", size, constraints.max_size, size <= constraints.max_size, text))
    if constraints.min_ratio is not None:
        text = f"ratio {which}{ratio:.3f}, must be at least {constraints.min_ratio:g}"
        found.append(Verdict("min_ratio", ratio, constraints.min_ratio, ratio >= constraints.min_ratio, text))
    return found
