"""An export from request to result: check, open, reach the goal, ship, judge. It prints nothing."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.files.claim import check_output
from edgepack.pipeline.accepted import check_request
from edgepack.pipeline.export_result import ExportResult
from edgepack.pipeline.goals.ladder import fitting
from edgepack.pipeline.makers.complete import aim_of, coded_maker, gguf_maker, refined_maker, wire_maker
from edgepack.pipeline.makers.located import with_located
from edgepack.pipeline.makers.opened import opened_checkpoint, read_request_recipe, source_bytes, with_original, work_of
from edgepack.pipeline.makers.refined_default import decided
from edgepack.pipeline.options import CODED, GGUF, WIRE
from edgepack.pipeline.outline import Made
from edgepack.pipeline.reaching import reach
from edgepack.pipeline.ship import Shipment
from edgepack.pipeline.verdict import gates_of, verdict_on

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from edgepack.export.recipe.passes import Passes
    from edgepack.pipeline.cluster.board import Board
    from edgepack.pipeline.cluster.crew import ClusterCrew
    from edgepack.pipeline.goals.ladder import Reached
    from edgepack.pipeline.outline import Json, Outline
    from edgepack.pipeline.request import ExportRequest


def run_export(request: ExportRequest) -> ExportResult:
    """Make what is asked for, or with `dry_run` say what it would be.

    A missed gate is no error where the target was given: the file stays, and `passed` says so.

    Raises:
        UsageError: options that contradict each other, or a size that cannot be met.
        CheckFailedError: no target clears the gates; nothing is written.
        EdgepackError: whatever source, passes or making find wrong; nothing is left under a final name then.
    """
    check_request(request)
    started = time.monotonic()
    if request.only_sees:
        return _projector_alone(request, started)
    with with_located(request) as located, _with_crew(located) as (manned, board), with_original(manned) as opened:
        result = _exported(opened, started)
        done = board is not None and not request.dry_run
        return replace(result, cluster=board.as_json()) if board is not None and done else result


@contextmanager
def _with_crew(request: ExportRequest) -> Iterator[tuple[ExportRequest, Board | None]]:
    """The request with the workers of its cluster, where it names one, and who counts what they do."""
    if request.cluster is None:
        yield request, None
        return
    from edgepack.pipeline.cluster.opening import Job, opened_crew

    with opened_crew(Job.of_export(request)) as crew:
        yield replace(request, crew=crew), crew.board


def _exported(request: ExportRequest, started: float) -> ExportResult:
    """What is asked for, made of what is opened."""
    request = decided(request)
    if request.tune:
        from edgepack.pipeline.makers.tuned import check_tuning

        check_tuning(request)
    rated = _rated(request)
    with _passes(rated or request) as passes:
        if request.dry_run:
            return _planned(request, rated, passes, started)
        reached = reach(request, rated, passes)
    return _made(request, rated, reached, started)


def _made(request: ExportRequest, rated: ExportRequest | None, reached: Reached, started: float) -> ExportResult:
    """What a run tells, judged where that is asked for."""
    shipped = reached.shipped
    asked = request.is_gated or request.validate
    judged = verdict_on(request, reached) if request.judges_weights or (asked and not reached.tried) else None
    outline = shipped.made.outline
    if (rated or request).changes_weights:  # passes leave float32; what is told is the model that was given
        outline = replace(outline, source_bytes=source_bytes(request))
    return ExportResult(
        shipped.path, shipped.bytes, time.monotonic() - started, outline, shipped.made, shipped.adapters,
        shipped.projector, reached.tried, judged, gates_of(request),
    )  # fmt: skip


def _projector_alone(request: ExportRequest, started: float) -> ExportResult:
    """The projector's file, under its own name."""
    from edgepack.pipeline.makers.projector import ProjectorFile

    if request.path is not None:
        check_output(request.path, force=True)
    projector = ProjectorFile(request)
    path, outline = request.path or Path(projector.name), projector.outline
    check_output(path, None if request.dry_run else outline.bytes, force=True)
    made = None if request.dry_run else Made(outline, (projector.write(path),))
    seconds = time.monotonic() - started
    return ExportResult(path, outline.bytes, seconds, outline, made, (), None, (), None, gates_of(request))


@contextmanager
def _passes(request: ExportRequest) -> Iterator[Passes | None]:
    """The recipe at work, where there is one."""
    if not request.changes_weights:
        yield None
        return
    with work_of(request) as passes:
        yield passes


def _rated(request: ExportRequest) -> ExportRequest | None:
    """The refined file that a wire's host of K-quants is better served by."""
    if request.kind != WIRE:
        return None
    from edgepack.pipeline.makers.rated import rated_request

    return rated_request(request)


def _planned(
    request: ExportRequest, rated: ExportRequest | None, passes: Passes | None, started: float
) -> ExportResult:
    """What a dry run tells."""
    outline, shipment = _outline(request, rated, passes), Shipment(request)
    shipment.check(outline)
    path, predicted = shipment.path_for(outline), _forecast(request, outline)
    seconds = time.monotonic() - started
    return ExportResult(path, outline.bytes, seconds, outline, None, (), None, (), None, gates_of(request), predicted)


def _forecast(request: ExportRequest, outline: Outline) -> Mapping[str, Json] | None:
    """What the work will take on the request's cluster; None where no cluster is named, or it cannot be said."""
    if request.crew is None:
        return None
    from edgepack.pipeline.cluster.crew import ClusterCrew as Manned
    from edgepack.pipeline.cluster.forecast import forecast
    from edgepack.pipeline.makers.gguf import open_gguf
    from edgepack.quant.types.targets import find_target

    assert isinstance(request.crew, Manned)
    if request.kind != GGUF or request.refine or request.changes_weights or request.calibration is not None:
        return _sampled(request, request.crew)
    return forecast(open_gguf(request, None).planner.outline(find_target(outline.target)), request.crew).as_json()


def _sampled(request: ExportRequest, crew: ClusterCrew) -> Mapping[str, Json] | None:
    """The same of work on whole blocks. What drops some of them is not foretold."""
    from edgepack.pipeline.cluster.sampled import sampled_forecast

    known = request.original is not None or request.source.is_dir()
    drops = request.has_passes and any(
        step.settings.get("method") == "layers" for step in read_request_recipe(request).passes
    )
    if not known or drops:
        return None
    checkpoint = opened_checkpoint(request)
    return sampled_forecast(request, checkpoint, crew, lambda asked: _exported(asked, time.monotonic())).as_json()


def _outline(request: ExportRequest, rated: ExportRequest | None, passes: Passes | None) -> Outline:
    if rated is not None:
        from edgepack.pipeline.makers.rated import SEARCHED, wired

        refined, maker_of_all = refined_maker(rated, passes)
        outline = wired(maker_of_all.outline(aim_of(refined, maker_of_all)), request)
        return replace(outline, limits=(*outline.limits, SEARCHED))
    if request.kind == WIRE:
        return wire_maker(request, passes).outline
    if request.kind == CODED:
        maker, target = coded_maker(request, passes)
        return maker.outline(target)
    if request.refine:
        refined, maker_of_all = refined_maker(request, passes)
        return maker_of_all.outline(aim_of(refined, maker_of_all))
    gguf, ladder = gguf_maker(request, passes)
    if request.target is None:
        return next(outline for _target, outline in fitting(gguf, ladder, request))
    return gguf.outline(ladder[0])
