"""How `bench_fidelity` makes the files that no option of export makes: wire and refinement without an ingredient."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from edgepack.export.checkpoint import open_checkpoint
from edgepack.export.wire.plan import WireSettings
from edgepack.pipeline.frontier.making import FileMaker, MadeFile
from edgepack.pipeline.goals.scalar import scale_to_size
from edgepack.pipeline.makers import refined
from edgepack.pipeline.makers.refined_run import refined_run
from edgepack.pipeline.makers.wire_run import WireRun, read_calibration
from edgepack.quant.codecs.ggml.host_grids import find_host

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from edgepack.export.refine.model import RefinedModel
    from edgepack.export.refine.values import RefineSettings
    from edgepack.model import Checkpoint
    from edgepack.pipeline.frontier.points import Spec
    from edgepack.pipeline.makers.refined_run import RunOptions
    from edgepack.pipeline.makers.wire_run import Calibration

SETTINGS = "settings"  # an option of a spec: fields of `WireSettings` → value, and the host's name
REFINEMENT = "refinement"  # an option of a spec: fields of `RefineSettings` → value

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


# What each ingredient of refinement does alone; a type's own mixture is made as its target, not within its bytes. All
# but the last two have the smoothing in front, whose own share part `floor` shows.
REFINED_ABLATIONS: dict[str, dict[str, bool]] = {
    "encoder alone": {"allocation": False, "feedback": False},
    "feedback in the target's types": {"allocation": False},
    "allocation, encoder": {"feedback": False},
    "all but rows together": {"two_sided": False},
    "allocation, feedback, not smoothed": {"smooth": False},
    "encoder alone, not smoothed": {"allocation": False, "feedback": False, "smooth": False},
}


class BenchMaker(FileMaker):
    """As `FileMaker`; a spec with `settings` is a wire with these, one with `refinement` a refined file.

    Refined files keep their curvature in the study's folder: those that differ in an ingredient are of equal weights.
    """

    def export(self, spec: Spec, limit: int | None) -> MadeFile:
        """The export, or the run of a wire or of a refinement with settings of its own."""
        if SETTINGS in spec.options:
            return self._wire(spec, limit)
        rest = dict(spec.options)
        changes = rest.pop(REFINEMENT, {})

        def changed(
            checkpoint: Checkpoint,
            output: Path,
            settings: RefineSettings,
            calibration: Calibration,
            options: RunOptions,
        ) -> AbstractContextManager[RefinedModel]:
            shared = replace(options, shared=self.folder)
            return refined_run(checkpoint, output, replace(settings, **changes), calibration, shared)

        with patch.object(refined, "refined_run", changed):
            return super().export(replace(spec, options=rest), limit)

    def _wire(self, spec: Spec, limit: int | None) -> MadeFile:
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
