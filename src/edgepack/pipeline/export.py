"""An export from request to result: check, open, reach the goal, ship, judge. It prints nothing."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from edgepack.files.output import check_output
from edgepack.pipeline.accepted import check_request
from edgepack.pipeline.goals.ladder import Reached, fitting, reach_gates, reach_given, reach_size
from edgepack.pipeline.makers.located import with_located
from edgepack.pipeline.makers.opened import (
    opened_checkpoint,
    read_request_recipe,
    separate_adapter,
    source_bytes,
    with_original,
    work_of,
)
from edgepack.pipeline.makers.refined_default import decided
from edgepack.pipeline.makers.separate import SUFFIX, SeparateAdapter, WithAdapter
from edgepack.pipeline.options import CODED, GGUF, WIRE
from edgepack.pipeline.outline import Made
from edgepack.pipeline.ship import Shipment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from edgepack.edge.fidelity.run import FidelityRun
    from edgepack.edge.fidelity.scorers.scorer import Scorer
    from edgepack.edge.fidelity.scoring import ScoringOptions
    from edgepack.edge.fidelity.validate import Gates
    from edgepack.export.recipe.work import Passes
    from edgepack.pipeline.cluster.board import Board
    from edgepack.pipeline.cluster.crew import ClusterCrew
    from edgepack.pipeline.goals.judging import Judge, Rung
    from edgepack.pipeline.goals.ladder import Maker
    from edgepack.pipeline.makers.projector import ProjectorFile
    from edgepack.pipeline.makers.refined import Aim, RefinedMaker
    from edgepack.pipeline.makers.wire import WireMaker
    from edgepack.pipeline.outline import Json, Outline
    from edgepack.pipeline.request import ExportRequest
    from edgepack.quant.codecs.targets import EdgeTarget
    from edgepack.quant.types.targets import Target

Step = TypeVar("Step")


@dataclass(frozen=True)
class ExportResult:
    """What an export gave, or with `dry_run` would give.

    Attributes:
        output: the GGUF, its first shard, or the archive.
        bytes: of the model's files, or of the archive.
        seconds: wall time.
        outline: of the file.
        made: what was written; None of a dry run.
        adapters: LoRA files beside the output.
        projector: the file of what sees beside the output, or None.
        tried: what a search judged, in order.
        validation: the file held against its original, where that was asked for.
        gates: the bars that it had to clear.
        cluster: what the nodes of a cluster did, or are predicted to do; None where there is none.
    """

    output: Path
    bytes: int
    seconds: float
    outline: Outline
    made: Made | None
    adapters: tuple[Path, ...]
    projector: Path | None
    tried: tuple[Rung, ...]
    validation: FidelityRun | None
    gates: Gates
    cluster: Mapping[str, Json] | None = None

    @property
    def beside(self) -> tuple[Path, ...]:
        """Every file that belongs to the model: adapters, and what sees."""
        return (*self.adapters, *([] if self.projector is None else [self.projector]))

    @property
    def passed(self) -> bool:
        """Whether no gate was missed."""
        return self.validation is None or self.validation.candidates[0].passed(self.gates)

    def as_json(self) -> dict[str, Json]:
        """The result as scripts read it."""
        found: dict[str, Json] = {
            "output": str(self.output), "bytes": self.bytes, "seconds": round(self.seconds, 3),
            "target": self.outline.target, "source_bytes": self.outline.source_bytes,
            "tensors": [row.as_json() for row in self.outline.tensors],
        }  # fmt: skip
        if self.outline.limits:
            found["limits"] = list(self.outline.limits)
        if SUFFIX in self.outline.beside and self.output.suffix != ".edgepack":
            found["adapter"] = str(self.output.with_name(f"{self.output.stem}{SUFFIX}.gguf"))
        if self.outline.projector is not None and self.output.suffix != ".edgepack":
            found["projector"] = str(self.output.with_name(self.outline.projector))
        if self.made is not None:
            found["passes"] = [dict(figures) for figures in self.made.figures]
            found["notes"] = list(self.made.notes)
            found["adapters"] = [{"output": str(path), "bytes": path.stat().st_size} for path in self.adapters]
            found |= self.made.more
        if self.cluster is not None:
            found["cluster"] = dict(self.cluster)
        if self.tried:
            found["tried"] = [_tried(rung) for rung in self.tried]
        if self.validation is not None:
            from edgepack.edge.fidelity.outcome import candidate_json

            run = self.validation
            found["validation"] = candidate_json(run.candidates[0], self.gates, run.chunking)
        return found


def _tried(rung: Rung) -> dict[str, Json]:
    statistics = rung.validation.statistics
    return {
        "target": rung.target, "bytes": rung.bytes, "top1_agreement": statistics.agreement.mean,
        "top1_interval": list(statistics.agreement.share_interval()), "mean_kl": statistics.divergence.mean,
        "passed": rung.passed,
    }  # fmt: skip


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
        reached = _reach(request, rated, passes)
    shipped = reached.shipped
    asked = request.is_gated or request.validate
    judged = _verdict(request, reached) if request.judges_weights or (asked and not reached.tried) else None
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
    if request.kind != GGUF or request.refine or request.changes_weights:
        return _sampled(request, request.crew)
    return forecast(open_gguf(request, None).planner.outline(find_target(outline.target)), request.crew).as_json()


def _sampled(request: ExportRequest, crew: ClusterCrew) -> Mapping[str, Json] | None:
    """The same of work on whole blocks. Gates try many files, and an adapter is of all blocks: not foretold."""
    from edgepack.export.checkpoint import open_checkpoint
    from edgepack.pipeline.cluster.sampled import sampled_forecast

    known = request.original is not None or request.source.is_dir()
    drops = request.has_passes and any(
        step.settings.get("method") == "layers" for step in read_request_recipe(request).passes
    )
    if not known or drops or request.is_gated or request.adapter is not None:
        return None
    checkpoint = request.original or open_checkpoint(request.source)
    return sampled_forecast(request, checkpoint, crew, lambda asked: _exported(asked, time.monotonic())).as_json()


def _outline(request: ExportRequest, rated: ExportRequest | None, passes: Passes | None) -> Outline:
    if rated is not None:
        from edgepack.pipeline.makers.rated import SEARCHED, wired

        refined, maker_of_all = _refined(rated, passes)
        outline = wired(maker_of_all.outline(_aim(refined, maker_of_all)), request)
        return replace(outline, limits=(*outline.limits, SEARCHED))
    if request.kind == WIRE:
        return _wire(request, passes).outline
    if request.kind == CODED:
        maker, target = _coded(request, passes)
        return maker.outline(target)
    if request.refine:
        refined, maker_of_all = _refined(request, passes)
        return maker_of_all.outline(_aim(refined, maker_of_all))
    gguf, ladder = _gguf(request, passes)
    if request.target is None:
        return next(outline for _target, outline in fitting(gguf, ladder, request))
    return gguf.outline(ladder[0])


def _reach(request: ExportRequest, rated: ExportRequest | None, passes: Passes | None) -> Reached:
    """Reach the request's goal with the maker of its kind."""
    with Shipment(request) as shipment:
        shipment.claim_named()
        if rated is not None:
            return _reach_rated(request, rated, passes, shipment)
        return _reach_in(shipment, request, passes)


def _reach_in(shipment: Shipment, request: ExportRequest, passes: Passes | None) -> Reached:
    if request.kind == WIRE:
        return _reach_scalar(_wire(request, passes), request, shipment)
    if request.kind == CODED:
        maker, target = _coded(request, passes)
        return reach_given(maker, target, request, shipment)
    if request.refine:
        return _reach_refined(request, passes, shipment)
    gguf, ladder = _gguf(request, passes)
    if request.target is not None:
        return reach_given(gguf, ladder[0], request, shipment)
    if request.max_bytes is not None:
        return reach_size(gguf, ladder, request, shipment)
    with _judge(request) as judge:
        return reach_gates(gguf, ladder, judge, request, shipment)


def _gguf(request: ExportRequest, passes: Passes | None) -> tuple[Maker[Target], Sequence[Target]]:
    """The maker of ggml's types and the targets that it may take, from large to small."""
    from edgepack.pipeline.makers.gguf import open_gguf
    from edgepack.quant.types.targets import find_target

    given = None if request.target is None else find_target(request.target)
    maker = open_gguf(request, passes)
    ladder = maker.ladder if given is None else (given,)
    adapter = _beside(request)
    return _seeing(maker if adapter is None else WithAdapter(maker, adapter), request), ladder


def _coded(request: ExportRequest, passes: Passes | None) -> tuple[Maker[EdgeTarget], EdgeTarget]:
    """The maker of the variant and its target."""
    from edgepack.pipeline.makers.coded import open_coded
    from edgepack.quant.codecs.targets import find_edge_target

    target = find_edge_target(request.target or "")
    maker, adapter = open_coded(request, passes), _beside(request)
    return _seeing(maker if adapter is None else WithAdapter(maker, adapter), request), target


def _wire(request: ExportRequest, passes: Passes | None) -> WireMaker:
    from edgepack.pipeline.makers.wire import WireMaker

    return WireMaker(request, passes, _beside(request), _eyes(request))


def _seeing(maker: Maker[Step], request: ExportRequest) -> Maker[Step]:
    """The maker, with what sees beside its files where that was asked for."""
    from edgepack.pipeline.makers.projector import WithProjector

    eyes = _eyes(request)
    return maker if eyes is None else WithProjector(maker, eyes)


def _eyes(request: ExportRequest) -> ProjectorFile | None:
    """What sees, where that was asked for."""
    from edgepack.pipeline.makers.projector import ProjectorFile

    return ProjectorFile(request) if request.mmproj else None


def _beside(request: ExportRequest) -> SeparateAdapter | None:
    """The adapter that stays a file of its own."""
    adapter = separate_adapter(request)
    return None if adapter is None else SeparateAdapter(adapter, request.source, request.original)


def _reach_scalar(maker: WireMaker, request: ExportRequest, shipment: Shipment) -> Reached:
    """The scale that reaches a size or a gate."""
    from edgepack.pipeline.goals.scalar import scale_to_gates, scale_to_size

    shipment.claim(maker.outline)
    with ExitStack() as opened:
        run = opened.enter_context(maker.open(shipment.path_for(maker.outline)))
        tried: tuple[Rung, ...] = ()
        if request.is_gated:
            _last, tried = scale_to_gates(run, opened.enter_context(_judge(request)))
        else:
            wanted = request.max_bytes if request.bits is None else int(request.bits * run.weights / 8)
            scale_to_size(run, wanted or 0)
        return Reached(shipment.deliver(maker.made(run, run.trials[-1])), tried)


def _refined(request: ExportRequest, passes: Passes | None) -> tuple[RefinedMaker, Maker[Aim]]:
    """The maker of refined files, and with all that lies beside them."""
    from edgepack.pipeline.makers.refined import RefinedMaker

    refined, adapter = RefinedMaker(request, passes), _beside(request)
    return refined, _seeing(refined if adapter is None else WithAdapter(refined, adapter), request)


def _aim(refined: RefinedMaker, maker: Maker[Aim]) -> Aim:
    """What is asked for, less what lies beside the file."""
    outline = maker.outline(refined.aim())
    return refined.aim(outline.shipped_bytes - outline.bytes)


def _reach_refined(request: ExportRequest, passes: Passes | None, shipment: Shipment) -> Reached:
    """The bytes that were asked for, or those that a search finds for a gate or an archive's size."""
    from edgepack.pipeline.goals.scalar import scale_to_gates, scale_to_size
    from edgepack.pipeline.makers.refined_scale import RefinedScale

    refined, maker = _refined(request, passes)
    aim = _aim(refined, maker)
    outline = maker.outline(aim)
    shipment.claim(outline)
    with ExitStack() as opened:
        opened.enter_context(refined.opened(shipment.path_for(outline)))
        if not refined.searches:
            return reach_given(maker, aim, request, shipment)
        folder = opened.enter_context(shipment.scratch(outline))
        scale = RefinedScale(refined, maker, request, shipment, folder)
        tried: tuple[Rung, ...] = ()
        if request.is_gated:
            _last, tried = scale_to_gates(scale, opened.enter_context(_judge(request)))
        else:
            scale_to_size(scale, request.max_bytes or 0)
        return Reached(shipment.deliver(shipment.packed(scale.trials[-1].made, folder)), tried)


def _reach_rated(request: ExportRequest, rated: ExportRequest, passes: Passes | None, shipment: Shipment) -> Reached:
    """The rate at which a refined file's archive has the bytes that were asked for."""
    from edgepack.pipeline.goals.scalar import scale_to_size
    from edgepack.pipeline.makers.rated import RatedScale, wired

    refined, maker = _refined(rated, passes)
    outline = wired(maker.outline(_aim(refined, maker)), request)
    shipment.claim(outline)
    with ExitStack() as opened:
        opened.enter_context(refined.opened(shipment.path_for(outline)))
        folder = opened.enter_context(shipment.scratch(outline))
        scale = RatedScale(refined, maker, request, folder)
        scale_to_size(scale, scale.wanted)
        return Reached(shipment.deliver(scale.trials[-1].made))


def gates_of(request: ExportRequest) -> Gates:
    """The bars that the request sets."""
    from edgepack.edge.fidelity.validate import Gates

    return Gates(
        request.min_agreement, request.max_kl, None, request.max_mean_error, request.max_tensor_error
    )  # fmt: skip


def _scoring(request: ExportRequest) -> ScoringOptions:
    from edgepack.edge.fidelity.scoring import ScoringOptions
    from edgepack.packaging.trust.policy import ANYONE

    # What is judged was made here a moment ago and is not signed yet.
    return ScoringOptions(max_chunks=request.chunks, threads=request.threads or 0, floor=False, greedy=0, trust=ANYONE)


def _judge(request: ExportRequest) -> Judge:
    """Judges files against the request's model, its merged adapter included."""
    from edgepack.pipeline.goals.judging import Judge

    text = None if request.text is None else Path(request.text)
    return Judge(request.source, gates_of(request), text, _scoring(request), opener=opener_of(request))


def _verdict(request: ExportRequest, reached: Reached) -> FidelityRun:
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
