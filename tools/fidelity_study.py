"""How `bench_fidelity` makes the files that no option of export makes: the wire without one of its ingredients."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgepack.export.checkpoint import open_checkpoint
from edgepack.export.wire.plan import WireSettings
from edgepack.pipeline.frontier.making import FileMaker, MadeFile
from edgepack.pipeline.goals.scalar import scale_to_size
from edgepack.pipeline.makers.wire_run import WireRun, read_calibration
from edgepack.quant.codecs.ggml.host_grids import find_host

if TYPE_CHECKING:
    from edgepack.pipeline.frontier.points import Spec

SETTINGS = "settings"  # an option of a spec: fields of `WireSettings` → value, and the host's name

# What each ingredient of the wire does alone; none has what the ones above it lack.
ABLATIONS: dict[str, dict[str, Any]] = {
    "nearest": {"feedback": False, "column_steps": False, "row_steps": False, "trellis": 0},
    "feedback": {"column_steps": False, "row_steps": False, "trellis": 0},
    "feedback, columns": {"row_steps": False, "trellis": 0},
    "feedback, rows": {"column_steps": False, "trellis": 0},
    "all but allocation": {"allocation": False},
    "all but trellis": {"trellis": 0},
    "all, 64 states": {"trellis": 64},
    "all and drift": {"drift": True},
}


class BenchMaker(FileMaker):
    """As `FileMaker`; a spec with `settings` is a wire with these."""

    def export(self, spec: Spec, limit: int | None) -> MadeFile:
        """The export, or the run of a wire with settings of its own."""
        if SETTINGS not in spec.options:
            return super().export(spec, limit)
        began, study, changes = time.monotonic(), self.study, dict(spec.options[SETTINGS])
        checkpoint = open_checkpoint(study.model)
        tokens = read_calibration(
            checkpoint, study.calibration, study.device, spec.sequences or study.sequences, study.length
        )
        settings = replace(WireSettings(find_host(changes.pop("host")), device=study.device), **changes)
        gguf = self.gguf_of(spec)
        with WireRun(checkpoint, gguf, settings, tokens, threads=study.scoring.threads or None, resume=True,
                     shared=self.folder, progress=study.progress) as run:  # fmt: skip
            trial = scale_to_size(run, limit or 0)
            run.gguf.replace(gguf)
            run.archive.replace(gguf.with_suffix(".edgepack"))
        lines = (f"scale {trial.scale:.4g}, {len(run.trials)} tries",)
        return MadeFile(gguf, gguf.with_suffix(".edgepack"), time.monotonic() - began, lines)
