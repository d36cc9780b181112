"""A refined file tuned towards its original before it is shipped: both stages in one run, gone on with in either.

How a file is tuned is `pipeline.tuning`'s; refining is `makers.refined`'s.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.gguf.reader import read_header
from edgepack.pipeline.makers.opened import opened_checkpoint
from edgepack.pipeline.tuning.sampled import DEFAULT_MINUTES, tuning_tokens
from edgepack.pipeline.tuning.tune import check_device, check_sequences, tune_gguf
from edgepack.pipeline.tuning.written import reserved_metadata
from edgepack.quant.tuning.parts import INTEGERS, REFINED_PARTS, STE
from edgepack.quant.tuning.settings import TuningSettings
from edgepack.text_file import read_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgepack.export.refine.model import RefinedModel
    from edgepack.gguf.types import Value
    from edgepack.pipeline.makers.wire_run import Calibration
    from edgepack.pipeline.outline import Json, Made
    from edgepack.pipeline.request import ExportRequest
    from edgepack.pipeline.tuning.tune import Tuned


def tuning_settings(request: ExportRequest) -> TuningSettings:
    """What a request says of its tuning: steps, or minutes."""
    steps = request.tune_steps
    minutes = None if steps is not None else request.tune_minutes or DEFAULT_MINUTES
    parts = {*REFINED_PARTS, *([INTEGERS] if request.tune_moves else [])}
    return TuningSettings(
        steps=steps, minutes=minutes, parts=frozenset(parts), moves=request.tune_moves or STE, device=request.device
    )


def reserved(request: ExportRequest) -> dict[str, Value]:
    """Metadata of the untuned file, as long as what the tuned one will say: a budget holds for both."""
    return reserved_metadata(tuning_settings(request))


def check_tuning(request: ExportRequest) -> None:
    """Refuse before the work what cannot be tuned after it.

    Raises:
        CalibrationError: the text gives fewer than two sequences.
        UsageError: the device is not there.
        DependencyError: torch or transformers is not installed.
    """
    check_device(request.device)
    if request.calibration is not None:
        tokens, _line = tuning_tokens(opened_checkpoint(request), read_text(Path(request.calibration)))
        check_sequences(len(tokens))


def untuned_path(model: RefinedModel, path: Path) -> Path:
    """Where the refined file lies until it is tuned: in the refinement's scratch, never under a final name."""
    return model.scratch / path.name


def tuned(request: ExportRequest, model: RefinedModel, calibration: Calibration | None, made: Made, path: Path) -> Made:
    """Tune what was refined, and write it to `path`; the file is as it was where that does not help.

    Args:
        request: says how long, and names the text.
        model: what the file was made of; its scratch keeps states for a run that goes on.
        calibration: what curvature was measured on: learnt from where there is no text.
        made: the refined file.
        path: of the tuned one.

    Raises:
        UsageError: the file has nothing that can be tuned.
        CalibrationError: the text gives fewer than two sequences.
        EdgepackError: as `tune_gguf`.
    """
    found = tune_gguf(
        made.gguf, model.checkpoint, _tokens(request, model, calibration), tuning_settings(request), path,
        request.progress, teacher=opened_checkpoint(request), within=model.scratch, pre=request.pre,
        resume=request.resume, note=request.tell,
    )  # fmt: skip
    made.gguf.unlink()
    outline = replace(made.outline, metadata=read_header(path).metadata)
    return replace(
        made, outline=outline, files=(path,), notes=(*made.notes, *found.notes),
        lines=(*made.lines, _line(found)), more={**made.more, "tuned": _figures(found)},
    )  # fmt: skip


def _tokens(request: ExportRequest, model: RefinedModel, calibration: Calibration | None) -> NDArray[np.int64]:
    """Pieces of the calibration text, more and shorter ones than curvature takes; without a text, its own."""
    if request.calibration is None:
        assert calibration is not None
        return calibration.tokens
    tokens, _line = tuning_tokens(model.checkpoint, read_text(Path(request.calibration)))
    count, length = tokens.shape  # whatever curvature's --sequences and --length say
    request.tell(f"tune: learns from {count} pieces of {length} tokens, spread evenly over the calibration text")
    return tokens


def _line(found: Tuned) -> str:
    """What people are told."""
    result = "dropped" if found.dropped else f"best after step {found.best_step}"
    return (
        f"tuned: held-out divergence {found.before:.5f} → {found.after:.5f}, {found.steps} of {found.planned} steps,"
        f" {result}"
    )


def _figures(found: Tuned) -> dict[str, Json]:
    """What scripts are told."""
    return {
        "steps": found.steps, "planned_steps": found.planned, "best_step": found.best_step, "dropped": found.dropped,
        "tokens": found.tokens, "held_out_kl": {"before": found.before, "after": found.after},
        "seconds": round(found.seconds, 3), "tensors": found.tuned,
    }  # fmt: skip
