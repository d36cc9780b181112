"""The wire where its host is a K-quant: a refined file whose integers heed what they take in the archive.

Grids of one step a row have neither minima nor scales a sub-block, which hosts below Q8_0 hold anyway; near the bytes
that a refined file ships in, refining it for fewer loses less than they do. Rounding is `export.refine`'s, which rate
reaches an archive's size `pipeline.goals.scalar`'s.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from edgepack.export.mapped_model import map_checkpoint
from edgepack.pipeline.goals.scalar import TOLERANCE
from edgepack.pipeline.makers.opened import bare_model, opened_checkpoint, read_request_recipe, unworked
from edgepack.pipeline.makers.refined_default import smooths
from edgepack.pipeline.makers.refined_scale import RefinedTrial, remove_made
from edgepack.pipeline.makers.wire_host import check_host, host_plan, memory_for
from edgepack.pipeline.options import WIRE
from edgepack.pipeline.ship import Shipment
from edgepack.quant.codecs.ggml.host_grids import HOSTS, find_host
from edgepack.quantities import format_size

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgepack.pipeline.goals.judging import Judge, Rung
    from edgepack.pipeline.goals.ladder import Maker
    from edgepack.pipeline.makers.aim import Aim
    from edgepack.pipeline.makers.refined import RefinedMaker
    from edgepack.pipeline.outline import Made, Outline
    from edgepack.pipeline.request import ExportRequest
    from edgepack.quant.codecs.ggml.host_grids import Host

# Of the file's bytes in memory: archives of fewer are the trellis', whose integers take less than a host's.
LEAST_SHARE = 0.8
# What a plan tells of the time.
SEARCHED = "the archive's size is searched: two to four roundings"
_SPAN = 100.0  # the rate at scale 1, in the rates at which a coarser step is worth its error
_SLOPE = 1.386  # 2 ln 2: what an error grows by for a bit less, in itself
_PACKED_SHARE = 0.93  # of a refined file's bytes that its archive takes, about, at no rate


def rated_request(request: ExportRequest) -> ExportRequest | None:
    """The refined file that a request for the wire stands for; None where a trellis does better or is asked for.

    It is taken where a host of K-quants is named or memory is limited to less than `q8` needs, the goal is a number of
    bytes, and these are at least `LEAST_SHARE` of those in memory.

    Raises:
        CheckFailedError: the host does not fit the device, or none does.
    """
    asks_for_grids = request.drift or request.rdo is not None or request.trellis is not None
    wanted = request.bits is not None or request.max_bytes is not None
    held = (request.host_type, request.memory_bytes, request.for_device) != (None, None, None)
    if request.kind != WIRE or asks_for_grids or not wanted or not held:
        return None
    memory = _memory(request)
    if not memory or _wanted(request, opened_checkpoint(request).weight_count) < LEAST_SHARE * memory:
        return None
    output = None if request.path is None else request.path.with_suffix(".gguf")
    return replace(
        request, target=None, refine=True, smooth=smooths(request), max_size=memory, output=output, pack=False,
        max_download=None, max_memory=None, host_type=None, bits=None,
    )  # fmt: skip


def _memory(request: ExportRequest) -> int:
    """Bytes that the GGUF may have: the limit, or those of a host; 0 where q8 or nothing is meant."""
    device = request.for_device
    if request.host_type is not None:
        host = find_host(request.host_type)
        if device is not None:
            check_host(bare_model(request), host, device)
        return 0 if host == HOSTS["q8"] else _host_bytes(request, host)
    largest = _host_bytes(request, HOSTS["q8"])
    limits = [request.memory_bytes or largest]
    if device is not None:
        limits.append(memory_for(bare_model(request), device) or largest)
    return min(limits) if min(limits) < largest else 0


def _host_bytes(request: ExportRequest, host: Host) -> int:
    checkpoint = opened_checkpoint(request)
    if request.has_passes:
        checkpoint = unworked(checkpoint, read_request_recipe(request))
    mapped = map_checkpoint(checkpoint, pre=request.pre, allow_requantize=request.allow_requantize)
    return host_plan(mapped, host).total_bytes


def _wanted(request: ExportRequest, weights: int) -> int:
    """Bytes of the archive."""
    return int(request.bits * weights / 8) if request.bits is not None else request.max_bytes or 0


class RatedScale:
    """A refined model at any rate, as `goals.scalar` has it; archives are made whatever is shipped.

    Args:
        refined: plans; its request is `rated_request`'s.
        maker: makes, with what lies beside the file.
        request: as the user gave it.
        folder: where files are made.
    """

    host = "of K-quants"
    weights = 24  # so that a scale's square lies between `goals.scalar`'s bounds on divergence

    def __init__(self, refined: RefinedMaker, maker: Maker[Aim], request: ExportRequest, folder: Path) -> None:
        self._refined, self._maker, self._request, self._folder = refined, maker, request, folder
        path = None if request.path is None else request.path.with_suffix(".edgepack")
        self._packing = Shipment(replace(request, pack=True, output=path))
        outline = maker.outline(refined.aim())
        self.aim = refined.aim(outline.shipped_bytes - outline.bytes)
        self._even = _SLOPE * float(refined.predicted(self.aim)) / refined.weights
        self.trials: list[RefinedTrial] = []

    @property
    def wanted(self) -> int:
        """Bytes of the archive that are asked for."""
        return _wanted(self._request, self._refined.weights)

    def attempt(self, scale: float) -> RefinedTrial:
        """Make the file at the rate of a scale, and its archive."""
        return self._tried(scale, replace(self.aim, rate=self._rate(scale)))

    def fill(self) -> None:
        """Where the last try ships in less than was asked for, leave matrices without the rate, as many as may be.

        Even the finest rate takes some per cent off an archive: scales have fewer digits then. What the rate costs most
        goes first. All of them without it are the refined file of that memory, on the coder of grids.
        """
        last, least = self.trials[-1], (1 - TOLERANCE) * self.wanted
        rated = replace(self.aim, rate=self._rate(last.scale))
        free = self._refined.matrices(rated)
        fits, above = 0, free + 1
        while self.trials[-1].archive_bytes < least or self.trials[-1].archive_bytes > self.wanted:
            if above - fits == 1 and self.trials[-1].free == fits:
                break
            trial = self._tried(last.scale, replace(rated, free=free))
            fits, above = (free, above) if trial.archive_bytes <= self.wanted else (fits, free)
            free = (fits + above) // 2

    def _tried(self, scale: float, aim: Aim) -> RefinedTrial:
        if self.trials:
            remove_made(self.trials[-1].made)
        outline = wired(self._maker.outline(aim), self._request)
        made = self._maker.make(aim, self._packing.scratch_name(outline, self._folder))
        made = replace(made, outline=wired(made.outline, self._request))
        packed = self._packing.packed(made, self._folder)
        assert packed.archive is not None
        size = packed.archive.stat().st_size
        self.trials.append(RefinedTrial(scale, size, self._told(packed, aim, size), aim.free))
        return self.trials[-1]

    def _rate(self, scale: float) -> float:
        return _SPAN * scale**2 * self._even

    def _told(self, made: Made, aim: Aim, size: int) -> Made:
        """What people and scripts are told of both sizes."""
        bits, gguf, tries = round(8 * size / self._refined.weights, 4), made.gguf.stat().st_size, len(self.trials) + 1
        where = f" in all but {aim.free} of {self._refined.matrices(aim)} matrices" if aim.free else ""
        worth = f"a bit was worth {aim.rate:.3g} nats{where}"
        line = (
            f"ships as {format_size(size)} ({bits:.2f} bits a weight), runs as {format_size(gguf)}; {worth};"
            f" {tries} tries"
        )
        more = {
            "archive_bytes": size, "gguf_bytes": gguf, "bits_per_weight": bits, "rate": aim.rate, "unrated": aim.free,
            "trials": tries,
        }  # fmt: skip
        return replace(made, lines=(*made.lines, line), more={**made.more, **more})

    def predicted_bytes(self, scales: Sequence[float]) -> list[float]:
        """About what archives take: from the rate at which a step is worth its error on, half a bit a doubling."""
        return [_PACKED_SHARE * self.aim.budget * (1 - self._saved(scale)) for scale in scales]

    def _saved(self, scale: float) -> float:
        relative = self._rate(scale) / self._even
        saved = 0.25 * math.log2(1 + relative**2) * self._refined.weights / 8 / self.aim.budget
        return min(saved, 0.8)

    def hold_still(self, _held: bool) -> None:
        """Nothing but the rate ever changes."""

    def judge_last(self, judge: Judge) -> Rung:
        """Hold the last try against the original."""
        made = self.trials[-1].made
        return judge(f"refined at rate {self._rate(self.trials[-1].scale):.3g}", made.gguf, made.adapters)


def wired(outline: Outline, request: ExportRequest) -> Outline:
    """An outline under the name that was asked for."""
    host = None if request.host_type is None else find_host(request.host_type).kind.name
    return replace(outline, target=WIRE, label="wire-mixed" if host is None else f"wire-{host}")
