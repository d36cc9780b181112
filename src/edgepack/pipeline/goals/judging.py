"""Holds one file after another against an original that is opened once: what gates decide by.

How text is scored is `edge.fidelity`'s; what is tried next is `pipeline.goals.ladder`'.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from edgepack.edge.fidelity.scoring import choose_chunking, open_candidate, sample_text, text_to_score
from edgepack.edge.fidelity.validate import Validation, validate
from edgepack.packaging.trust.policy import ANYONE
from edgepack.pipeline.fidelity import open_reference
from edgepack.progress import Progress, silent
from edgepack.quantities import format_size

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from typing_extensions import Self

    from edgepack.edge.fidelity.gates import Gates
    from edgepack.edge.fidelity.run import Text
    from edgepack.edge.fidelity.scorers.scorer import Chunking, Scorer
    from edgepack.edge.fidelity.scoring import ScoringOptions


@dataclass(frozen=True)
class Rung:
    """One file that was tried.

    Attributes:
        target: its name, such as `gguf-q4km`.
        bytes: of the file and its adapters.
        validation: how it did; on the first chunks alone where that was enough to refuse it.
        passed: whether it cleared the gates.
    """

    target: str
    bytes: int
    validation: Validation
    passed: bool

    def __str__(self) -> str:
        """One line for people."""
        statistics = self.validation.statistics
        low, high = statistics.agreement.share_interval()
        return (
            f"{'passed' if self.passed else 'failed'} {self.target}: {format_size(self.bytes)}, agreement "
            f"{statistics.agreement.mean:.4f} ({low:.4f} to {high:.4f}), KL {statistics.divergence.mean:.2g}, "
            f"{statistics.tokens} tokens"
        )


class Judge:
    """An original with its text; the reference is opened at the first file and closed at the end of the block.

    Args:
        reference: the original, as `pipeline.fidelity.open_reference` takes it.
        gates: at least one bar.
        text: what is scored; None is the reference's own samples.
        options: how it is scored.
        opener: opens the reference where it is not simply what lies at `reference`.
        progress: told of scoring.
    """

    def __init__(
        self,
        reference: Path,
        gates: Gates,
        text: Path | None,
        options: ScoringOptions,
        *,
        opener: Callable[[], Scorer] | None = None,
        progress: Progress = silent,
    ) -> None:
        self.gates, self._options, self._progress = gates, options, progress
        self._text = None if text is None else text_to_score(text)
        self._opener = opener or (lambda: open_reference(reference, options))
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()

    def __call__(self, target: str, path: Path, adapters: tuple[Path, ...] = ()) -> Rung:
        """Score the text, or as much of it as shows that the file is far from the bar.

        Args:
            target: names the file in what is told.
            path: the GGUF.
            adapters: LoRA files that it runs with.
        """
        reference, text, chunking = self._opened
        options = replace(self._options, ctx=chunking.ctx, adapters=adapters, trust=ANYONE)  # made here, not signed yet
        with closing(open_candidate(path, options)) as candidate:
            (found,) = validate(
                reference, [candidate], text.text, chunking, self._progress,
                hopeless=lambda so_far: hopeless(so_far, self.gates),
            )  # fmt: skip
        size = sum(file.stat().st_size for file in (path, *adapters))
        return Rung(target, size, found, found.passed(self.gates))

    @cached_property
    def _opened(self) -> tuple[Scorer, Text, Chunking]:
        reference = self._stack.enter_context(closing(self._opener()))
        text = self._text or sample_text(reference)
        return reference, text, choose_chunking(reference, text.text, self._options)


def hopeless(found: Validation, gates: Gates) -> bool:
    """Whether even the favourable end of an interval misses its gate."""
    statistics = found.statistics
    if found.tokens_differ is not None:
        return True
    if gates.min_agreement is not None and statistics.agreement.share_interval()[1] < gates.min_agreement:
        return True
    return gates.max_kl is not None and statistics.divergence.interval()[0] > gates.max_kl


def margin(found: Validation, gates: Gates) -> float:
    """The factor by which the error could grow before a gate is missed; below 1 where one is."""
    statistics, margins = found.statistics, []
    if gates.max_kl is not None:
        margins.append(gates.max_kl / max(statistics.divergence.interval()[1], 1e-12))
    if gates.min_agreement is not None:
        margins.append((1 - gates.min_agreement) / max(1 - statistics.agreement.share_interval()[0], 1e-12))
    return min(margins)
