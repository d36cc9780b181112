"""What is taught to what, and what teaching came to, as scripts read it too. The work is `teach`'s."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from edgepack.edge.fidelity.tasks.knowledge import Known
    from edgepack.pipeline.adapting.canon import Canon
    from edgepack.pipeline.adapting.measuring import Measured
    from edgepack.quant.learning.loop import Learnt


# What teaching is for: most of what single sentences say is known, and other text hardly suffers.
_KNOWS, _FORGETS = 0.8, 0.02
_MORE = 4  # times the epochs: three let a model of 135 M know half of what stands once, twelve all (docs/learning.md)


@dataclass(frozen=True)
class Lesson:
    """What is taught to what.

    Attributes:
        model: a GGUF, or a Hugging Face folder that is exported first.
        canon: what is taught.
        other: a UTF-8 text of what is to stay; None for what the model writes itself.
        target: of the export of a folder.
    """

    model: Path
    canon: Canon
    other: Path | None = None
    target: str = "gguf-q8"

    @property
    def paths(self) -> list[Path]:
        """All that is read."""
        return [self.model, *self.canon.paths, *([] if self.other is None else [self.other])]


@dataclass(frozen=True)
class Taught:
    """What teaching came to.

    Attributes:
        base: the GGUF that the adapter is for.
        adapter: the adapter's file.
        bytes: of the adapter.
        questions: the file of held-out questions.
        seconds: wall time.
        learnt: the loop's record.
        examples: how many were learnt.
        before: what the file knew.
        after: what it knows with the adapter.
        other: the file with the adapter against the file without, on text that has nothing to do with the documents.
        notes: a line for each thing that the user should know.
    """

    base: Path
    adapter: Path
    bytes: int
    questions: Path
    seconds: float
    learnt: Learnt
    examples: int
    before: Known
    after: Known
    other: Measured
    notes: tuple[str, ...]

    @property
    def forgotten(self) -> float:
        """By how much perplexity on other text has risen, as a share."""
        return self.other.perplexity_rise


def advice(after: Known, forgotten: float, epochs: float | None) -> list[str]:
    """What to try next, a line each, where the model knows too little of single sentences, or has forgotten too much.

    Args:
        after: what the file knows with the adapter.
        forgotten: by how much perplexity on other text has risen, as a share.
        epochs: that were learnt; None where steps were given instead.
    """
    lines = []
    if "term" in after.likely and (knows := after.share("term")) < _KNOWS:
        lines.append(
            f"teach: knows {100 * knows:.0f} % of what single sentences say: what stands once takes more"
            f" {'steps' if epochs is None else f'epochs, such as --epochs {_MORE * epochs:g}'}"
        )
    if forgotten > _FORGETS:
        lines.append(
            f"teach: other text has {100 * forgotten:.1f} % more perplexity: --replay with more pieces, --other with"
            " text of the kind that must stay, or a lower --rate"
        )
    return lines


def taught_json(taught: Taught) -> Mapping[str, Any]:
    """What scripts read."""
    kinds = {}
    for kind, answers in taught.before.likely.items():
        held = taught.before.against(taught.after, kind)
        kinds[kind] = {
            "questions": len(answers), "chance": taught.before.chance[kind], "before": held.reference,
            "after": held.candidate, "p_value": held.p_value,
            "written_before": _share(taught.before.written.get(kind)),
            "written_after": _share(taught.after.written.get(kind)),
        }  # fmt: skip
    return {
        "base": str(taught.base), "output": str(taught.adapter), "bytes": taught.bytes,
        "questions": str(taught.questions), "seconds": round(taught.seconds, 3), "examples": taught.examples,
        "steps": taught.learnt.steps,
        "losses": [list(each) for each in taught.learnt.losses[:: max(1, len(taught.learnt.losses) // 20)]],
        "knowledge": {"before": taught.before.share(), "after": taught.after.share(), "kinds": kinds},
        "forgetting": {
            "perplexity": {"before": taught.other.reference_perplexity, "after": taught.other.perplexity},
            "perplexity_rise": taught.forgotten, "top1_agreement": taught.other.agreement,
            "mean_kl": taught.other.kl,
        },
        "notes": list(taught.notes),
    }  # fmt: skip


def _share(answers: Sequence[bool] | None) -> float | None:
    return None if not answers else sum(answers) / len(answers)
