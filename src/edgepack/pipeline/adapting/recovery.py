"""What a recovery reads, and what it came to, as scripts read it too. The work is `recover`'s."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgepack.pipeline.adapting.larger import Verdict
    from edgepack.pipeline.adapting.measuring import Measured
    from edgepack.quant.learning.loop import Learnt


@dataclass(frozen=True)
class Sources:
    """What a recovery reads.

    Attributes:
        file: the compressed GGUF.
        reference: its original, a Hugging Face folder or a GGUF.
        text: a UTF-8 file.
        teacher: whose answers are learnt; the reference where None.
        answers: a JSONL of questions and better answers to learn in place of the text, or None.
        imatrix: what the larger type is made with, or None.
    """

    file: Path
    reference: Path
    text: Path
    teacher: Path | None = None
    answers: Path | None = None
    imatrix: Path | None = None

    @property
    def paths(self) -> list[Path]:
        """All of them."""
        every = (self.file, self.reference, self.text, self.teacher, self.answers, self.imatrix)
        return [path for path in every if path is not None]


@dataclass(frozen=True)
class Recovered:
    """What a recovery came to.

    Attributes:
        output: the adapter.
        bytes: its length.
        seconds: wall time.
        learnt: the loop's record.
        examples: that there were, and how many of them were learnt.
        before: the file alone, on pieces that nothing was learnt from.
        after: the file with the adapter.
        larger: a file of the larger type, or None.
        verdict: which of them is nearer to the original at equal bytes, or None.
        notes: a line for each thing that the user should know.
    """

    output: Path
    bytes: int
    seconds: float
    learnt: Learnt
    examples: tuple[int, int]
    before: Measured
    after: Measured
    larger: Measured | None
    verdict: Verdict | None
    notes: tuple[str, ...]

    @property
    def regained(self) -> float:
        """Share of the lost divergence that came back; negative where more was lost."""
        return self.after.regained(self.before)


_LITTLE = 0.1  # of the lost divergence; the published rate gave back 1 to 2 % in 600 steps (docs/learning.md)


def advice(before: Measured, after: Measured, rate: float | None) -> list[str]:
    """What to know, or to try next, a line each, where little of the lost divergence came back.

    Args:
        before: the file alone, on unseen text.
        after: the file with the adapter.
        rate: that was given; None where the model's width decided.
    """
    regained = after.regained(before)
    if regained <= 0:
        return ["recover: on unseen text the file with the adapter is no nearer to the original than without"]
    if regained < _LITTLE and rate is not None:
        slow = f"a rate of {rate:g} moves an adapter slowly, --rate auto goes by the model's width"
        return [f"recover: {100 * regained:.1f} % of the lost divergence came back: {slow}"]
    return []


def recovered_json(found: Recovered) -> Mapping[str, Any]:
    """What scripts read."""
    learnt, judged = found.learnt, found.verdict
    return {
        "output": str(found.output), "bytes": found.bytes, "seconds": round(found.seconds, 3),
        "examples": found.examples[0], "hardest": found.examples[1], "steps": learnt.steps,
        "best_step": learnt.best_step, "held_out": [list(each) for each in learnt.held_out],
        "before": found.before.json(), "after": found.after.json(), "kl_regained": found.regained,
        "larger": None if found.larger is None or judged is None else {
            "target": judged.target, **found.larger.json(), "equal_bytes_kl": judged.equal_kl,
        },
        "wins": None if judged is None else judged.wins, "notes": list(found.notes),
    }  # fmt: skip
