"""Scores files against an original that is run once a text: its predictions are kept on disk.

What is measured is `edge.fidelity.validate`'s.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from edgepack.edge.fidelity.kept_predictions import KeptPredictions, keep
from edgepack.edge.fidelity.scoring import choose_chunking, open_candidate, text_to_score
from edgepack.edge.fidelity.validate import perplexity_ratio, validate
from edgepack.packaging.trust.policy import ANYONE
from edgepack.pipeline.frontier.points import TextFigures
from edgepack.processors import default_threads

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.edge.fidelity.run import Text
    from edgepack.edge.fidelity.scorers.scorer import Chunking, Scorer
    from edgepack.edge.fidelity.scoring import ScoringOptions
    from edgepack.edge.fidelity.validate import Validation
    from edgepack.pipeline.frontier.ledger import Ledger
    from edgepack.pipeline.frontier.request import StudyRequest


def _chunking(options: ScoringOptions, text: str, scorer: Scorer) -> Chunking:
    return choose_chunking(scorer, text, options)


class KeptOriginal:
    """The original's predictions of every text of a study.

    Args:
        study: names model and texts.
        ledger: where predictions are kept.
    """

    def __init__(self, study: StudyRequest, ledger: Ledger) -> None:
        self._study = study
        self.texts: dict[str, Text] = {path.name: text_to_score(path) for path in study.texts}
        self._kept = {name: ledger.place(f"original-{index}") for index, name in enumerate(self.texts)}
        self.scored: dict[str, KeptPredictions] = {}

    def run(self) -> None:
        """Run it over every text, but for what is there already; it is closed at the end.

        Raises:
            EdgepackError: whatever opening or scoring finds wrong.
        """
        opened: list[Scorer] = []
        with ExitStack() as stack:

            def reference() -> Scorer:
                if not opened:
                    opened.append(stack.enter_context(closing(self._opened())))
                return opened[0]

            for name, text in self.texts.items():
                self.scored[name] = keep(
                    self._kept[name], text.text,
                    partial(_chunking, self._study.scoring, text.text),
                    reference, self._study.progress,
                )  # fmt: skip

    def _opened(self) -> Scorer:
        from edgepack.pipeline.fidelity import open_original

        return open_original(self._study.model, self._study.located, self._study.scoring)

    def measure(self, gguf: Path, name: str) -> TextFigures:
        """Hold a file against the original on the text called `name`.

        Raises:
            EdgepackError: whatever opening or scoring finds wrong.
        """
        scoring, kept = self._study.scoring, self.scored[name]
        threads = scoring.threads or default_threads()
        options = _options(self._study, kept)
        with closing(open_candidate(gguf, options, threads)) as candidate:
            (found,) = validate(kept, [candidate], self.texts[name].text, kept.chunking, self._study.progress)
        return text_figures(found, kept.chunking.ctx)


def _options(study: StudyRequest, kept: KeptPredictions) -> ScoringOptions:
    # What is scored was made here a moment ago and is not signed yet.
    return replace(study.scoring, ctx=kept.chunking.ctx, trust=ANYONE)


def text_figures(found: Validation, ctx: int) -> TextFigures:
    """The figures of one validation that a frontier tells."""
    statistics = found.statistics
    ratio, interval = perplexity_ratio(statistics)
    return TextFigures(
        statistics.tokens, ctx, statistics.divergence.mean, statistics.divergence.interval(), statistics.agreement.mean,
        statistics.agreement.share_interval(), ratio, interval, found.seconds,
    )  # fmt: skip
