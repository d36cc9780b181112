"""What a calibration gave, as values and JSON: figures of every method on the judging half, what the router does."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from edgepack.pipeline.confidence import metrics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from edgepack.edge.confidence.record import Fitted, Form
    from edgepack.pipeline.confidence.metrics import Bin
    from edgepack.pipeline.confidence.router import Routed, Wish


@dataclass(frozen=True)
class Scores:
    """How good the confidences of one method are, on answers that it was not fitted on.

    Attributes:
        ece: expected calibration error over 15 bins of equal width.
        ece_interval: 95 %, groups of questions drawn with replacement.
        ece_by_chance: what as many answers would show if every confidence were exactly true.
        brier: mean squared difference of confidence and truth.
        log_loss: mean negative log-likelihood, in nats.
        auroc: how often a right answer is held surer than a wrong one.
        area_under_risk: mean share of wrong answers over all shares of given ones, the surest given first.
        bins: of the reliability diagram.
    """

    ece: float
    ece_interval: tuple[float, float]
    ece_by_chance: float
    brier: float
    log_loss: float
    auroc: float
    area_under_risk: float
    bins: tuple[Bin, ...]


def scores(confidence: NDArray[np.float64], right: NDArray[np.bool_], groups: Sequence[int], seed: int) -> Scores:
    """Every figure of confidences, float64 [n], and truths, bool [n]."""
    return Scores(
        metrics.calibration_error(confidence, right),
        metrics.calibration_interval(confidence, right, groups, seed),
        metrics.perfect_error(confidence, seed),
        metrics.brier(confidence, right),
        metrics.log_loss(confidence, right),
        metrics.auroc(confidence, right),
        metrics.area_under_risk(confidence, right),
        tuple(metrics.reliability(confidence, right)),
    )


@dataclass(frozen=True)
class RiskCurve:
    """Share of wrong answers among those given, at shares given of 5, 10 … 100 %."""

    coverage: tuple[float, ...]
    risk: tuple[float, ...]


def risk_curve(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> RiskCurve:
    """The curve of confidences, float64 [n], and truths, bool [n]."""
    _coverage, risk = metrics.risk_coverage(confidence, right)
    shares = tuple(step / 20 for step in range(1, 21))
    return RiskCurve(shares, tuple(float(risk[max(1, round(share * len(risk))) - 1]) for share in shares))


@dataclass(frozen=True)
class FormResult:
    """One form of question.

    Attributes:
        fitted: what the file keeps of it.
        fitted_on, judged_on: answers on each half.
        accuracy: share right, on the judging half.
        methods: `raw` and every calibrator → its figures.
        method: the one that is kept.
        before, after: risk when the surest answers are given first: by the raw log-probabilities, by what is kept.
        routed: what the threshold does.
    """

    fitted: Fitted
    fitted_on: int
    judged_on: int
    accuracy: float
    methods: Mapping[str, Scores]
    method: str
    before: RiskCurve
    after: RiskCurve
    routed: Routed


@dataclass(frozen=True)
class CalibrationResult:
    """What `edgepack calibrate` measured and wrote.

    Attributes:
        file: that was asked.
        origin: of the questions.
        questions: how many were asked.
        wish: what the router is to reach.
        forms: form of question → what came of it.
        left_out: form → why it was not calibrated.
        digest: of the contents that this holds for.
        asking_seconds: wall time of asking.
        output: the file with the calibration; None where none was asked for.
        bytes: its length; 0 without.
    """

    file: Path
    origin: str
    questions: int
    wish: Wish
    forms: Mapping[Form, FormResult]
    left_out: Mapping[Form, str]
    digest: str
    asking_seconds: float
    output: Path | None = None
    bytes: int = 0

    def json(self) -> dict[str, Any]:
        """The object that `edgepack calibrate --json` prints."""
        return {
            "file": str(self.file),
            "output": None if self.output is None else str(self.output),
            "bytes": self.bytes,
            "questions": self.questions,
            "origin": self.origin,
            "digest": self.digest,
            "seconds": self.asking_seconds,
            "wish": {name: value for name, value in asdict(self.wish).items() if value is not None},
            "forms": {form: _form_json(result) for form, result in self.forms.items()},
            "left_out": dict(self.left_out),
        }

    def html(self) -> str:
        """A self-contained page: figures, reliability before and after, risk against coverage, the router."""
        from edgepack.pipeline.confidence.page import render

        return render(self)


def _form_json(result: FormResult) -> dict[str, Any]:
    return {
        "method": result.method,
        "fitted_on": result.fitted_on,
        "judged_on": result.judged_on,
        "accuracy": result.accuracy,
        "threshold": result.routed.threshold,
        "router": asdict(result.routed),
        "methods": {name: asdict(one) for name, one in result.methods.items()},
        "risk_coverage": {
            "coverage": result.after.coverage,
            "raw": result.before.risk,
            "calibrated": result.after.risk,
        },
    }
