"""A calibration as a GGUF keeps it: what was fitted for each form of question, and the verdict on an answer by it.

What it is bound to is `binding`'s; finding it again in a file that is opened is `opening`'s.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from edgepack.edge.confidence.calibrators import Calibrator, from_object, to_object
from edgepack.edge.confidence.features import observe_answer
from edgepack.edge.confidence.statements import stated_binding, stated_object, stated_version
from edgepack.errors import UsageError
from edgepack.gguf import keys
from edgepack.gguf.types import Value, ValueType, array, string

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgepack.edge.confidence.features import Observation
    from edgepack.edge.llama.chances import TokenChances

Form = Literal["text", "chat", "choice"]
Route = Literal["answer", "escalate"]
FORMS: tuple[Form, ...] = ("text", "chat", "choice")
VERSION = 1
_MOST_CHARACTERS = 1 << 20
_MOST_FIGURES = 64
_LONGEST_FIGURE = 64  # characters of a figure's name


@dataclass(frozen=True)
class Verdict:
    """What a calibration says of one answer.

    Attributes:
        confidence: how likely it is right, 0 to 1; None where it has no token.
        route: whether to give the answer or to ask a larger model or a person.
        threshold: the least confidence of an answer that is given.
        in_range: whether the answer has as many tokens as those that the calibration was fitted on.
    """

    confidence: float | None
    route: Route
    threshold: float
    in_range: bool

    def json(self) -> dict[str, Any]:
        """As answers carry it."""
        return {
            "confidence": self.confidence,
            "route": self.route,
            "threshold": self.threshold,
            "in_range": self.in_range,
        }

    def __str__(self) -> str:
        """One line for people."""
        if self.confidence is None:
            return "no answer to be sure of: escalate"
        beyond = "" if self.in_range else ", longer or shorter than any answer that this was fitted on"
        return f"confidence {self.confidence:.2f}{beyond}: {self.route} (from {self.threshold:.2f} on it is given)"


@dataclass(frozen=True)
class Fitted:
    """The calibration of one form of question.

    Attributes:
        form: `text` (a text continued), `chat` (a question through the chat template) or `choice` (the likeliest of
            given endings).
        calibrator: from what is seen of an answer to a confidence.
        threshold: the least confidence of an answer that is given rather than escalated, 0 to 1; above 1 none is.
        lengths: fewest and most tokens of the answers that it was fitted on, both included.
        figures: what was measured on questions that it was not fitted on, for people.
    """

    form: Form
    calibrator: Calibrator
    threshold: float
    lengths: tuple[int, int]
    figures: Mapping[str, float] = field(default_factory=dict)

    def judge(self, tokens: Sequence[TokenChances]) -> Verdict:
        """The verdict on a written answer."""
        seen = observe_answer(tokens)
        if seen is None:
            return Verdict(None, "escalate", self.threshold, in_range=False)
        return self.verdict(seen, len(tokens))

    def verdict(self, seen: Observation, tokens: int) -> Verdict:
        """The verdict on what was seen of an answer; one of a length that nobody has measured is escalated."""
        confidence = self.calibrator.confidence(seen)
        in_range = self.lengths[0] <= tokens <= self.lengths[1]
        given = in_range and confidence >= self.threshold
        return Verdict(confidence, "answer" if given else "escalate", self.threshold, in_range)


@dataclass(frozen=True)
class Record:
    """All that a file says of its confidence.

    Attributes:
        digest: of the contents that it was fitted on (`binding.contents_digest`).
        adapters: of those that ran with them (`binding.adapter_digests`).
        fitted: form of question → its calibration.
    """

    digest: str
    adapters: tuple[str, ...]
    fitted: Mapping[Form, Fitted]

    def metadata(self) -> dict[str, Value]:
        """As a GGUF's metadata keep it."""
        told: dict[str, Value] = {
            keys.CONFIDENCE_VERSION: Value(ValueType.UINT32, VERSION),
            keys.CONFIDENCE_DIGEST: string(self.digest),
        }
        if self.adapters:
            told[keys.CONFIDENCE_ADAPTERS] = array(ValueType.STRING, list(self.adapters))
        for form, fitted in self.fitted.items():
            told[keys.CONFIDENCE + form] = string(_text(fitted))
        return told


def _text(fitted: Fitted) -> str:
    told = {
        "calibrator": to_object(fitted.calibrator),
        "threshold": fitted.threshold,
        "lengths": list(fitted.lengths),
        "figures": dict(fitted.figures),
    }
    return json.dumps(told, sort_keys=True, allow_nan=False)


def has_record(metadata: Mapping[str, Value]) -> bool:
    """Whether a GGUF says anything of its confidence."""
    return any(key.startswith(keys.CONFIDENCE) for key in metadata)


def read_record(metadata: Mapping[str, Value]) -> Record:
    """The record in a GGUF's metadata, which anybody may have written.

    Raises:
        UsageError: there is none, or it is not sound; the text names the key.
    """
    stated_version(metadata, keys.CONFIDENCE_VERSION, VERSION)
    digest, adapters = stated_binding(metadata, keys.CONFIDENCE_DIGEST, keys.CONFIDENCE_ADAPTERS)
    fitted: dict[Form, Fitted] = {
        form: _fitted(form, stated_object(metadata, keys.CONFIDENCE + form, _MOST_CHARACTERS))
        for form in FORMS
        if keys.CONFIDENCE + form in metadata
    }
    if not fitted:
        raise UsageError(f"{keys.CONFIDENCE}…: expected one of {', '.join(FORMS)}, got none")
    return Record(digest, adapters, fitted)


def _fitted(form: Form, told: dict[str, Any]) -> Fitted:
    where = keys.CONFIDENCE + form
    calibrator = from_object(told.get("calibrator"), f"{where}.calibrator")
    threshold: Any = told.get("threshold")
    if not _is_number(threshold) or not 0 <= threshold <= 2:
        raise UsageError(f"{where}.threshold: expected 0 to 2, got {str(threshold)[:40]!r}")
    return Fitted(form, calibrator, float(threshold), _lengths(told.get("lengths"), where), _figures(told, where))


def _lengths(told: object, where: str) -> tuple[int, int]:
    if isinstance(told, list) and len(told) == 2:
        low, high = told
        if isinstance(low, int) and isinstance(high, int) and 0 <= low <= high < 2**31:
            return int(low), int(high)
    raise UsageError(f"{where}.lengths: expected two whole numbers, the first not above the second")


def _figures(told: dict[str, Any], where: str) -> dict[str, float]:
    figures = told.get("figures", {})
    if not isinstance(figures, dict) or len(figures) > _MOST_FIGURES:
        raise UsageError(f"{where}.figures: expected an object of at most {_MOST_FIGURES} numbers")
    for name, value in figures.items():
        if len(name) > _LONGEST_FIGURE or not _is_number(value):
            raise UsageError(f"{where}.figures: expected finite numbers, got {str(value)[:40]!r}")
    return figures


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 1e300 if isinstance(value, int) else math.isfinite(value)
