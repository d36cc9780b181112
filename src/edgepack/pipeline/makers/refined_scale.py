"""Refined files at any predicted divergence, for a search that knows one scalar: of archives' sizes and of gates.

The scalar is the wire's: predicted divergence grows with its square. Which scale is tried is `pipeline.goals.scalar`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.pipeline.makers.aim import Aim

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgepack.pipeline.goals.judging import Judge, Rung
    from edgepack.pipeline.goals.ladder import Maker
    from edgepack.pipeline.makers.refined import RefinedMaker
    from edgepack.pipeline.outline import Made, Outline
    from edgepack.pipeline.request import ExportRequest
    from edgepack.pipeline.ship import Shipment

_PACKED_SHARE = 0.93  # of a file that its archive takes, about


@dataclass(frozen=True)
class RefinedTrial:
    """One scale tried.

    Attributes:
        scale: the scalar.
        archive_bytes: of what would be shipped.
        made: the files; only the last trial's are there.
        free: matrices that were rounded without a rate.
    """

    scale: float
    archive_bytes: int
    made: Made
    free: int = 0


class RefinedScale:
    """A refined model at any scale, as `goals.scalar` has it.

    Args:
        refined: plans.
        maker: makes, with what lies beside the file.
        request: says whether archives are wanted.
        shipment: packs.
        folder: where files are made.
    """

    host = "of stock types"
    weights = 24  # so that a scale's square is the predicted divergence

    def __init__(
        self, refined: RefinedMaker, maker: Maker[Aim], request: ExportRequest, shipment: Shipment, folder: Path
    ) -> None:
        self._refined, self._maker, self._request = refined, maker, request
        self._shipment, self._folder = shipment, folder
        self._largest = refined.aim().budget
        self.trials: list[RefinedTrial] = []

    def attempt(self, scale: float) -> RefinedTrial:
        """Make the file of the least bytes that is predicted to cost scale²."""
        if self.trials:
            remove_made(self.trials[-1].made)
        aim = Aim(self._largest, scale**2)
        made = self._maker.make(aim, self._shipment.scratch_name(self._outline(aim), self._folder))
        if self._request.max_size is not None:
            made = self._shipment.packed(made, self._folder)
        trial = RefinedTrial(scale, self._shipment.bytes_of(made), made)
        self.trials.append(trial)
        return trial

    def predicted_bytes(self, scales: Sequence[float]) -> list[float]:
        """About what is shipped at some scales, without making any."""
        outlines = [self._outline(Aim(self._largest, scale**2)) for scale in scales]
        share = _PACKED_SHARE if self._request.packs else 1.0
        return [share * outline.bytes + outline.shipped_bytes - outline.bytes for outline in outlines]

    def _outline(self, aim: Aim) -> Outline:
        return self._maker.outline(aim)

    def hold_still(self, _held: bool) -> None:
        """Nothing but the scale ever changes."""

    def judge_last(self, judge: Judge) -> Rung:
        """Hold the last try against the original."""
        made = self.trials[-1].made
        return judge(f"refined {made.outline.label.lower()}", made.gguf, made.adapters)


def remove_made(made: Made) -> None:
    """Remove the files of a try that another follows."""
    for path in (*made.files, *made.adapters, *([] if made.archive is None else [made.archive])):
        path.unlink(missing_ok=True)
