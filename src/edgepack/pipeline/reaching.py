"""A request's goal reached with the maker of its kind: the target given, a size, a gate; then the file is shipped.

The searches are `pipeline.goals`', what a maker is asked for `makers.complete`'s.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from edgepack.pipeline.goals.ladder import Reached, reach_gates, reach_given, reach_size
from edgepack.pipeline.makers.complete import aim_of, coded_maker, gguf_maker, refined_maker, wire_maker
from edgepack.pipeline.makers.pass_scratch import calibration_scratch
from edgepack.pipeline.options import CODED, WIRE
from edgepack.pipeline.ship import Shipment
from edgepack.pipeline.verdict import judge_of

if TYPE_CHECKING:
    from edgepack.export.recipe.passes import Passes
    from edgepack.pipeline.goals.judging import Rung
    from edgepack.pipeline.goals.scalar import ScalarMaker
    from edgepack.pipeline.makers.wire import WireMaker
    from edgepack.pipeline.request import ExportRequest


def reach(request: ExportRequest, rated: ExportRequest | None, passes: Passes | None) -> Reached:
    """Reach the request's goal with the maker of its kind."""
    with Shipment(request) as shipment:
        shipment.claim_named()
        if rated is not None:
            return _reach_rated(request, rated, passes, shipment)
        return _reach_in(shipment, request, passes)


def _reach_in(shipment: Shipment, request: ExportRequest, passes: Passes | None) -> Reached:
    if request.kind == WIRE:
        return _reach_scalar(wire_maker(request, passes), request, shipment)
    if request.kind == CODED:
        return _reach_coded(request, passes, shipment)
    if request.refine:
        return _reach_refined(request, passes, shipment)
    gguf, ladder = gguf_maker(request, passes)
    if request.target is not None:
        return reach_given(gguf, ladder[0], request, shipment)
    if request.max_bytes is not None:
        return reach_size(gguf, ladder, request, shipment)
    with judge_of(request) as judge:
        return reach_gates(gguf, ladder, judge, request, shipment)


def _reach_coded(request: ExportRequest, passes: Passes | None, shipment: Shipment) -> Reached:
    """The variant that was asked for; a calibration lies beside it meanwhile, and stays for `--resume` after a kill."""
    with ExitStack() as opened:
        scratch = None if request.calibration is None else opened.enter_context(calibration_scratch(request))
        maker, target = coded_maker(request, passes, scratch)
        return reach_given(maker, target, request, shipment)


def _reach_scalar(maker: WireMaker, request: ExportRequest, shipment: Shipment) -> Reached:
    """The scale that reaches a size or a gate."""
    shipment.claim(maker.outline)
    with maker.open(shipment.path_for(maker.outline)) as run:
        wanted = request.max_bytes if request.bits is None else int(request.bits * run.weights / 8)
        tried = _searched(run, request, wanted or 0)
        return Reached(shipment.deliver(maker.made(run, run.trials[-1])), tried)


def _searched(scale: ScalarMaker, request: ExportRequest, wanted: int) -> tuple[Rung, ...]:
    """Move a scale until the request's gates are reached, or `wanted` bytes; what gates judged on the way."""
    from edgepack.pipeline.goals.scalar import scale_to_gates, scale_to_size

    if not request.is_gated:
        scale_to_size(scale, wanted)
        return ()
    with judge_of(request) as judge:
        return scale_to_gates(scale, judge)[1]


def _reach_refined(request: ExportRequest, passes: Passes | None, shipment: Shipment) -> Reached:
    """The bytes that were asked for, or those that a search finds for a gate or an archive's size."""
    from edgepack.pipeline.makers.refined_scale import RefinedScale

    refined, maker = refined_maker(request, passes)
    aim = aim_of(refined, maker)
    outline = maker.outline(aim)
    shipment.claim(outline)
    with ExitStack() as opened:
        opened.enter_context(refined.opened(shipment.path_for(outline)))
        if not refined.searches:
            return reach_given(maker, aim, request, shipment)
        folder = opened.enter_context(shipment.scratch(outline))
        scale = RefinedScale(refined, maker, request, shipment, folder)
        tried = _searched(scale, request, request.max_bytes or 0)
        return Reached(shipment.deliver(shipment.packed(scale.trials[-1].made, folder)), tried)


def _reach_rated(request: ExportRequest, rated: ExportRequest, passes: Passes | None, shipment: Shipment) -> Reached:
    """The rate at which a refined file's archive has the bytes that were asked for."""
    from edgepack.pipeline.goals.scalar import scale_to_size
    from edgepack.pipeline.makers.rated import RatedScale, wired

    refined, maker = refined_maker(rated, passes)
    outline = wired(maker.outline(aim_of(refined, maker)), request)
    shipment.claim(outline)
    with ExitStack() as opened:
        opened.enter_context(refined.opened(shipment.path_for(outline)))
        folder = opened.enter_context(shipment.scratch(outline))
        scale = RatedScale(refined, maker, request, folder)
        scale_to_size(scale, scale.wanted)
        scale.fill()
        return Reached(shipment.deliver(scale.trials[-1].made))
