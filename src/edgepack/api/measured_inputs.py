"""What a measurement reads, opened: the original at a path or a URL, the text, how it is scored.

Measuring is `pipeline.fidelity`'s, the functions that people call `fidelity`'s.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from edgepack.api.trust import Trusted, policy_for
from edgepack.api.values import FilePath, optional_path
from edgepack.edge.fidelity.scoring import ScoringOptions
from edgepack.errors import EdgepackError, UsageError
from edgepack.files.remote import is_url
from edgepack.pipeline.fidelity import blockwise_scorer, run_validation, with_findings
from edgepack.pipeline.located import opened_place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from edgepack.edge.fidelity.run import FidelityRun
    from edgepack.pipeline.located import LocatedModel
    from edgepack.progress import Progress


@dataclass(frozen=True)
class Inputs:
    """What every measurement shares.

    Attributes:
        reference: the original's place, of one at a URL that of its small files.
        text: what is scored; None for what the original writes itself.
        scoring: how.
        progress: told of scoring.
        note: told what a person would like to know.
        located: an original at a URL.
    """

    reference: Path
    text: Path | None
    scoring: ScoringOptions
    progress: Progress
    note: Callable[[str], object]
    located: LocatedModel | None = None

    def run(self, candidates: Sequence[Path]) -> FidelityRun:
        """Hold files against the original; raises as `pipeline.fidelity.run_validation`."""
        opener = None if self.located is None else partial(blockwise_scorer, self.located.checkpoint, self.scoring)
        return run_validation(self.reference, candidates, self.text, self.scoring, self.progress, opener)

    def with_causes(self, run: FidelityRun, *, needed: bool = False) -> FidelityRun:
        """The run with what the files' contents tell; unless `needed`, as it was where the original has no map."""
        try:
            original = None if self.located is None else self.located.checkpoint
            return with_findings(run, self.reference, self.progress, original)
        except EdgepackError as error:
            if needed:
                raise
            self.note(f"weights were not compared: {error}")
            return run


def check_text(model: FilePath, text: FilePath | None, name: str = "--reference") -> None:
    """Refuse a model at a URL, given as `name`, that would have to write the text; raises UsageError."""
    if is_url(model) and text is None:
        raise UsageError(
            f"{name} at a URL is read block by block and cannot write: expected --text FILE, got '{model}'"
        )


@contextmanager
def opened_inputs(
    reference: FilePath, text: FilePath | None, scoring: ScoringOptions, progress: Progress,
    note: Callable[[str], object],
) -> Iterator[Inputs]:  # fmt: skip
    """What a measurement reads, while the block lasts."""
    check_text(reference, text)
    with opened_place(reference, None) as (path, located):
        yield Inputs(path, optional_path(text), scoring, progress, note, located)


def scoring_with(
    options: ScoringOptions | None,
    ctx: int | None = None,
    chunks: int | None = None,
    threads: int | None = None,
    trusted: Trusted = (),
) -> ScoringOptions:
    """`options` with what was said beside them."""
    chosen = options or ScoringOptions()
    return replace(
        chosen,
        ctx=chosen.ctx if ctx is None else ctx,
        max_chunks=chosen.max_chunks if chunks is None else chunks,
        threads=chosen.threads if threads is None else threads,
        trust=chosen.trust if trusted == () else policy_for(trusted),
    )
