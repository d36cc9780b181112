"""The maker of each kind of target, with all that lies beside its file: an adapter of its own, a projector.

What a goal makes of it is `pipeline.reaching`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from edgepack.pipeline.makers.opened import separate_adapter
from edgepack.pipeline.makers.separate import SeparateAdapter, WithAdapter

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgepack.export.recipe.passes import Passes
    from edgepack.pipeline.goals.ladder import Maker
    from edgepack.pipeline.makers.aim import Aim
    from edgepack.pipeline.makers.projector import ProjectorFile
    from edgepack.pipeline.makers.refined import RefinedMaker
    from edgepack.pipeline.makers.wire import WireMaker
    from edgepack.pipeline.request import ExportRequest
    from edgepack.quant.codecs.targets import EdgeTarget
    from edgepack.quant.types.targets import Target

Step = TypeVar("Step")


def gguf_maker(request: ExportRequest, passes: Passes | None) -> tuple[Maker[Target], Sequence[Target]]:
    """The maker of ggml's types and the targets that it may take, from large to small."""
    from edgepack.pipeline.makers.gguf import open_gguf
    from edgepack.quant.types.targets import find_target

    given = None if request.target is None else find_target(request.target)
    maker = open_gguf(request, passes)
    ladder = maker.ladder if given is None else (given,)
    adapter = _beside(request)
    return _seeing(maker if adapter is None else WithAdapter(maker, adapter), request), ladder


def coded_maker(
    request: ExportRequest, passes: Passes | None, scratch: Path | None = None
) -> tuple[Maker[EdgeTarget], EdgeTarget]:
    """The maker of the variant and its target; `scratch` is where a calibration lies while files are made."""
    from edgepack.pipeline.makers.coded import open_coded
    from edgepack.quant.codecs.targets import find_edge_target

    target = find_edge_target(request.target or "")
    maker, adapter = open_coded(request, passes, scratch), _beside(request)
    return _seeing(maker if adapter is None else WithAdapter(maker, adapter), request), target


def wire_maker(request: ExportRequest, passes: Passes | None) -> WireMaker:
    """The maker of files on low-entropy grids."""
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


def refined_maker(request: ExportRequest, passes: Passes | None) -> tuple[RefinedMaker, Maker[Aim]]:
    """The maker of refined files, and with all that lies beside them."""
    from edgepack.pipeline.makers.refined import RefinedMaker

    refined, adapter = RefinedMaker(request, passes), _beside(request)
    return refined, _seeing(refined if adapter is None else WithAdapter(refined, adapter), request)


def aim_of(refined: RefinedMaker, maker: Maker[Aim]) -> Aim:
    """What is asked for, less what lies beside the file."""
    outline = maker.outline(refined.aim())
    return refined.aim(outline.shipped_bytes - outline.bytes)
