"""What work that a text goes through will take on a cluster: measured on models of its first one and two blocks.

The same export is made of them by the same workers, with a few and with twice as many sequences; what it takes grows
with the blocks, with the sequences, and with both together, so that four runs say all of it, and two where no text
goes through the model. Nothing of them is left.
Which files are made is the caller's; the forecast of ordinary types is `forecast`'s, which need no text.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.export.config import ModelConfig
from edgepack.export.plan import stored_bytes
from edgepack.files.names import hidden_path
from edgepack.pipeline.cluster.board import Board
from edgepack.pipeline.cluster.crew import ClusterCrew
from edgepack.pipeline.cluster.forecast import Forecast
from edgepack.pipeline.makers.importance import SEQUENCES as IMPORTANCE_SEQUENCES
from edgepack.pipeline.makers.opened import read_request_recipe
from edgepack.pipeline.makers.refined_run import SEQUENCES
from edgepack.pipeline.makers.wire_run import SEQUENCES as WIRE_SEQUENCES
from edgepack.pipeline.options import CODED, WIRE
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edgepack.model import Checkpoint
    from edgepack.pipeline.request import ExportRequest

_FEW = 8  # sequences of the smaller run: a batch
_CORNERS = ((1, 1), (1, 2), (2, 1), (2, 2))  # (blocks, times so many sequences)
_SEARCHED_BITS = 4.0  # of a wire that is searched for a gate: a search for a size takes about as many tries

Corners = dict[tuple[int, int], float]


@dataclass(frozen=True)
class _Taken:
    """What one run took.

    Attributes:
        work: seconds of workers.
        own: seconds of processor of this process.
        sent: bytes that workers sent.
        peak: most memory of a worker, in bytes.
    """

    work: float
    own: float
    sent: float
    peak: int


def extrapolated(corners: Mapping[tuple[int, int], float], blocks: int, times: float) -> float:
    """Of runs of 1 and 2 blocks with 1 and 2 times so many sequences: of `blocks` with `times` so many.

    Linear in each where the other is fixed; what does not grow stands still, so that noise makes nothing negative.
    """

    def along(first: float, second: float, place: float) -> float:
        return first + max(second - first, 0.0) * (place - 1) if place >= 1 else first * place

    one, two = (along(corners[count, 1], corners[count, 2], times) for count in (1, 2))
    return along(one, two, blocks)


def sampled_forecast(
    request: ExportRequest, checkpoint: Checkpoint, crew: ClusterCrew, make: Callable[[ExportRequest], object]
) -> Forecast:
    """Predict an export that a text goes through.

    Args:
        request: of the whole. What its gates judge is judged where the command runs, and not foretold.
        checkpoint: its model, an adapter that is merged in it.
        crew: its cluster.
        make: makes what a request asks for.

    Raises:
        EdgepackError: what making the small files finds wrong, which the whole would too.
    """
    size, blocks = crew.backend.size(), ModelConfig(checkpoint.config).n_layers
    request, reads = _making(request), _reads_text(request)
    wanted = _sequences(request)
    few = max(1, min(_FEW, wanted // 2))
    output = (request.path or Path(request.source.name)).absolute()
    with tempfile.TemporaryDirectory(prefix=f"{hidden_path(output, 'forecast').name}-", dir=output.parent) as made:
        taken = {
            (count, times): _run(request, checkpoint, crew, make, min(count, blocks), times * few, Path(made))
            for count, times in _CORNERS
            if reads or times == 1
        }

    def whole(value: Callable[[_Taken], float]) -> float:
        corners = {(count, times): value(taken[count, times if reads else 1]) for count, times in _CORNERS}
        return extrapolated(corners, blocks, wanted / few)

    seconds = whole(lambda each: each.work) / size.processors + whole(lambda each: each.own)
    read = sum(stored_bytes(spec.dtype, prod(spec.shape)) for spec in checkpoint.tensors.specs.values())
    peak = max(each.peak for each in taken.values())
    return Forecast(seconds, size.processors, size.nodes, read, round(whole(lambda each: each.sent)), peak)


def _run(
    request: ExportRequest, checkpoint: Checkpoint, crew: ClusterCrew, make: Callable[[ExportRequest], object],
    blocks: int, sequences: int, folder: Path,
) -> _Taken:  # fmt: skip
    """Make the file of the first blocks; what that took."""
    from edgepack.quant.passes.prune.layers import keep_layers

    board = Board(lambda _line: None)
    small = keep_layers(checkpoint, range(blocks))
    share = small.weight_count / checkpoint.weight_count
    asked = replace(
        _shorter(request, sequences, folder), original=small, crew=ClusterCrew(crew.backend, board), dry_run=False,
        output=folder / ("m.edgepack" if request.kind == WIRE else "m.gguf"), force=True, resume=False, pack=False,
        progress=silent, tell=lambda _line: None, max_size=_scaled(request.max_bytes, share), max_download=None,
        shard_size=None, mmproj=False, shared=None, stages=None,
    )  # fmt: skip
    began = time.process_time()
    make(asked)
    tallies = board.nodes.values()
    return _Taken(
        sum(tally.seconds for tally in tallies), time.process_time() - began, sum(tally.bytes for tally in tallies),
        max((tally.peak for tally in tallies), default=0),
    )  # fmt: skip


def _scaled(limit: int | None, share: float) -> int | None:
    return None if limit is None else int(limit * share)


def _making(request: ExportRequest) -> ExportRequest:
    """The request without what is done when a file is made, and without the adapter, which its checkpoint has in it."""
    searches = request.kind == WIRE and request.is_gated
    return replace(
        request, adapter=None, min_agreement=None, max_kl=None, validate=False, text=None, chunks=None,
        bits=_SEARCHED_BITS if searches else request.bits,
    )  # fmt: skip


def _reads_text(request: ExportRequest) -> bool:
    """Whether sequences go through the model at all."""
    return request.kind != CODED or request.changes_weights or request.calibration is not None


def _sequences(request: ExportRequest) -> int:
    """How many sequences the whole runs."""
    if request.has_passes:
        return int(read_request_recipe(request).calibration["sequences"])
    if request.kind == CODED:
        from edgepack.quant.calibration.text import DEFAULT_SEQUENCES

        return request.sequences or DEFAULT_SEQUENCES
    return request.sequences or (
        WIRE_SEQUENCES if request.kind == WIRE else SEQUENCES if request.refine else IMPORTANCE_SEQUENCES
    )


def _shorter(request: ExportRequest, sequences: int, folder: Path) -> ExportRequest:
    """The request with so many sequences; of passes they are the recipe's."""
    if not request.has_passes:
        return replace(request, sequences=sequences)
    from edgepack.quant.passes.recipe import passes_toml, recipe_table

    table = recipe_table(read_request_recipe(request).text)
    table["calibration"] = {**table.get("calibration", {}), "sequences": sequences}
    path = folder / f"{sequences}.toml"
    path.write_text(passes_toml(table), encoding="utf-8")
    return replace(request, recipe=path, passes=())
