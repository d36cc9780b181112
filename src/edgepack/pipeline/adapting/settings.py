"""How adapters are trained: values only, and the rule for a rate that is left to edgepack."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgepack.errors import UsageError
from edgepack.quant.learning.settings import LearningSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

TEXT, ORIGINAL = "text", "original"
PUBLISHED_RATE = 8e-7
"""Of a published recipe for recovery adapters of large models; docs/learning-adapters.md says what it does to small."""

_AUTO_AT, _AUTO_WIDTH = 5e-4, 576  # a usual rate of adapters at this width, and how it falls: no measured optimum
_MOST_AUTO = 2e-3
LEAST_LENGTH, _MOST_LENGTH = 8, 1 << 17  # tokens of an example


def auto_rate(width: int) -> float:
    """A rate for AdamW that falls with the model's width, as updates of matrices grow with it (arXiv 2203.03466)."""
    return min(_MOST_AUTO, _AUTO_AT * _AUTO_WIDTH / max(1, width))


@dataclass(frozen=True)
class AdaptSettings:
    """What both kinds of training share.

    Attributes:
        rank: of the adapter.
        alpha: its scale times the rank; None for the rank itself.
        modules: ends of the names of projections that get factors; empty for all.
        rate: of AdamW; None for `auto_rate`.
        epochs: how often each example is learnt from.
        steps: of the optimiser, in place of `epochs`; 0 leaves the model as it is.
        batch: examples a step.
        length: tokens of an example at most.
        seed: of everything that is drawn.
        device: a torch device.
        max_memory: bytes that training may take.
        threads: of llama.cpp; 0 for every core.
        resume: go on with what an interrupted run of the same left beside the output.

    Raises:
        UsageError: numbers out of range.
    """

    rank: int = 16
    alpha: float | None = None
    modules: tuple[str, ...] = ()
    rate: float | None = None
    epochs: float = 3.0
    steps: int | None = None
    batch: int = 4
    length: int = 256
    seed: int = 0
    device: str = "cpu"
    max_memory: int | None = None
    threads: int = 0
    resume: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.epochs < 10_000:
            raise UsageError(f"adapter: expected epochs above 0, got {self.epochs}")
        if not LEAST_LENGTH <= self.length <= _MOST_LENGTH:
            raise UsageError(
                f"adapter: expected {LEAST_LENGTH} to {_MOST_LENGTH} tokens of an example, got {self.length}"
            )
        self.learning(1, 1)  # its own bounds

    @property
    def scale(self) -> float:
        """`alpha`, or the rank."""
        return float(self.rank) if self.alpha is None else self.alpha

    def learning(self, examples: int, width: int, **more: object) -> LearningSettings:
        """The loop's settings for so many examples and a model of that width."""
        batch = max(1, min(self.batch, examples))
        steps = max(1, round(self.epochs * examples / batch)) if self.steps is None else self.steps
        rate = auto_rate(width) if self.rate is None else self.rate
        return LearningSettings(
            steps, batch=batch, length=self.length, rate=rate, seed=self.seed, device=self.device,
            max_memory=self.max_memory, keep_every=max(1, steps // 8), **more,  # type: ignore[arg-type]
        )  # fmt: skip

    @property
    def about(self) -> tuple[object, ...]:
        """All that results depend on."""
        return (
            self.rank, self.scale, self.modules, self.rate, self.epochs, self.steps, self.batch, self.length, self.seed,
            self.device,
        )  # fmt: skip


@dataclass(frozen=True)
class RecoverSettings(AdaptSettings):
    """Of a recovery adapter.

    Attributes:
        hardest: how many examples are learnt from; None for `share` of them.
        share: of the examples.
        targets: `original`, what the teacher says of the text, or `text`, its next tokens.
        top: most probable tokens of the teacher that are kept at each position.
        measured: pieces of the text that nothing is learnt from, to measure on.
    """

    rank: int = 64
    rate: float | None = PUBLISHED_RATE
    hardest: int | None = None
    share: float = 0.02
    targets: str = ORIGINAL
    top: int = 64
    measured: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hardest is not None and self.hardest < 1:
            raise UsageError(f"recover: expected at least 1 hardest example, got {self.hardest}")
        if not 0 < self.share <= 1:
            raise UsageError(f"recover: expected a share of examples above 0 and up to 1, got {self.share}")
        if self.targets not in (TEXT, ORIGINAL):
            raise UsageError(f"recover: expected targets {ORIGINAL} or {TEXT}, got '{self.targets}'")
        if self.top < 1 or self.measured < 1:
            raise UsageError("recover: expected top and measured of at least 1")

    @property
    def about(self) -> tuple[object, ...]:
        """As `AdaptSettings.about`."""
        return (*super().about, self.hardest, self.share, self.targets, self.top, self.measured)


@dataclass(frozen=True)
class TeachSettings(AdaptSettings):
    """Of a canon adapter.

    Attributes:
        alpha: as `AdaptSettings.alpha`.
        questions: held-out questions at most.
        replay: pieces of other text that are learnt to stay what they are; 0 for none.
        replay_weight: of their divergence beside the documents' loss; what mixed batches gave it, now that few are.
        measured: pieces of other text to measure forgetting on.
    """

    alpha: float | None = 16.0
    batch: int = 2
    length: int = 512
    questions: int = 100
    replay: int = 64
    replay_weight: float = 1.5
    measured: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.questions < 1 or self.measured < 1 or self.replay < 0:
            raise UsageError("teach: expected at least 1 question, at least 1 piece to measure on, and replay from 0")
        if not 0 <= self.replay_weight < float("inf"):
            raise UsageError(f"teach: expected a weight of replay from 0, got {self.replay_weight}")

    @property
    def about(self) -> tuple[object, ...]:
        """As `AdaptSettings.about`."""
        return (*super().about, self.questions, self.replay, self.replay_weight, self.measured)


@dataclass(frozen=True)
class Forecast:
    """What a run will take, before it is begun.

    Attributes:
        seconds: wall time, from the speed of matrix products on this machine just now.
        memory: bytes at the highest point.
        parts: what the time goes into, in seconds.
        examples: that would be learnt from, as far as the text tells.
        steps: of the optimiser.
    """

    seconds: float
    memory: int
    parts: Mapping[str, float] = field(default_factory=dict)
    examples: int = 0
    steps: int = 0

    def json(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "seconds": round(self.seconds, 1), "memory_bytes": self.memory, "examples": self.examples,
            "steps": self.steps, "parts": {name: round(value, 1) for name, value in self.parts.items()},
        }  # fmt: skip
