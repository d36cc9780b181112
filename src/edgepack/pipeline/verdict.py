"""An export held against what it was made from: the gates, the scores, and which original it is.

Scoring is `edge.fidelity`'s, which file is judged the caller's.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.pipeline.makers.opened import opened_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgepack.edge.fidelity.gates import Gates
    from edgepack.edge.fidelity.run import FidelityRun
    from edgepack.edge.fidelity.scorers.scorer import Scorer
    from edgepack.edge.fidelity.scoring import ScoringOptions
    from edgepack.pipeline.goals.judging import Judge
    from edgepack.pipeline.goals.ladder import Reached
    from edgepack.pipeline.request import ExportRequest


def gates_of(request: ExportRequest) -> Gates:
    """The bars that the request sets."""
    from edgepack.edge.fidelity.gates import Gates

    return Gates(
        request.min_agreement, request.max_kl, None, request.max_mean_error, request.max_tensor_error
    )  # fmt: skip


def _scoring(request: ExportRequest) -> ScoringOptions:
    from edgepack.edge.fidelity.scoring import ScoringOptions
    from edgepack.packaging.trust.policy import ANYONE

    # What is judged was made here a moment ago and is not signed yet.
    return ScoringOptions(max_chunks=request.chunks, threads=request.threads or 0, floor=False, greedy=0, trust=ANYONE)


def judge_of(request: ExportRequest) -> Judge:
    """Judges files against the request's model, its merged adapter included."""
    from edgepack.pipeline.goals.judging import Judge

    text = None if request.text is None else Path(request.text)
    return Judge(request.source, gates_of(request), text, _scoring(request), opener=opener_of(request))


def verdict_on(request: ExportRequest, reached: Reached) -> FidelityRun:
    """The shipped file held against what it was made from."""
    from edgepack.pipeline.fidelity import run_validation, with_findings

    scoring = replace(_scoring(request), adapters=reached.shipped.adapters)
    text = None if request.text is None else Path(request.text)
    run = run_validation(
        request.source, [reached.shipped.path], text, scoring, request.progress, opener=opener_of(request)
    )
    if not request.judges_weights:
        return run
    plain = not request.remote and (request.adapter is None or request.adapter_mode != "merge")
    merged = None if plain else opened_checkpoint(request)
    return with_findings(run, request.source, request.progress, merged)


def opener_of(request: ExportRequest) -> Callable[[], Scorer] | None:
    """Opens the original where it is more than what lies at the model's place: with its adapter, or at a URL."""
    if request.adapter is None and not request.remote:
        return None
    from edgepack.pipeline.fidelity import blockwise_scorer

    merged = replace(request, adapter_mode="merge")
    return lambda: blockwise_scorer(opened_checkpoint(merged), _scoring(request))
