"""Bars that a candidate must clear, and how each went; what is measured is left to `validate` and its neighbours."""

from __future__ import annotations

from dataclasses import dataclass

from edgepack.errors import UsageError


@dataclass(frozen=True)
class Gates:
    """Bars that a candidate must clear; None is no bar.

    Attributes:
        min_agreement: least top-1 agreement; the lower end of the interval must reach it.
        max_kl: largest mean KL in nats; the upper end of the interval must not exceed it.
        max_perplexity_ratio: largest perplexity of the candidate over the reference's, by the upper end too.
        max_mean_error: the mean of the matrices' relative errors ‖Ŵ − W‖ / ‖W‖ must be below it.
        max_tensor_error: so must the largest of them below this.
    """

    min_agreement: float | None = None
    max_kl: float | None = None
    max_perplexity_ratio: float | None = None
    max_mean_error: float | None = None
    max_tensor_error: float | None = None

    def __post_init__(self) -> None:
        if self.min_agreement is not None and not 0 < self.min_agreement <= 1:
            raise UsageError(f"agreement gate: expected more than 0 and at most 1, got {self.min_agreement}")
        for name, value in (
            ("KL", self.max_kl), ("perplexity ratio", self.max_perplexity_ratio),
            ("mean error", self.max_mean_error), ("tensor error", self.max_tensor_error),
        ):  # fmt: skip
            if value is not None and not value > 0:
                raise UsageError(f"{name} gate: expected more than 0, got {value}")

    @property
    def judges_weights(self) -> bool:
        """Whether a bar is on the weights, so that they must be compared."""
        return self.max_mean_error is not None or self.max_tensor_error is not None


@dataclass(frozen=True)
class GateResult:
    """How one gate went.

    Attributes:
        name: `min-agreement`, `max-kl`, `max-perplexity-ratio` or `same-tokens`.
        passed: whether the bar is cleared.
        detail: one sentence with the numbers.
    """

    name: str
    passed: bool
    detail: str


def judged(name: str, what: str, estimate: float, bound: float, bar: float, *, at_least: bool) -> GateResult:
    """How a gate went.

    Args:
        name: of the gate.
        what: is measured, as a person says it.
        estimate: what was found.
        bound: the end of its interval that must clear the bar.
        bar: to clear.
        at_least: whether more is better.
    """
    passed = bound >= bar if at_least else bound <= bar
    end, rule = ("lower", "at least") if at_least else ("upper", "at most")
    detail = f"{what} {estimate:.4g}, {end} end of the interval {bound:.4g}, must be {rule} {bar:.4g}"
    if not passed and (estimate >= bar if at_least else estimate <= bar):
        detail += ": too close to tell on this text, more of it narrows the interval"
    return GateResult(name, passed, detail)
