"""What a refined export's curvature is measured on: the text, how many pieces, how long."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.pipeline.makers.opened import read_request_recipe
from edgepack.pipeline.makers.refined_run import SEQUENCES
from edgepack.pipeline.makers.wire_run import read_calibration

if TYPE_CHECKING:
    from edgepack.model import Checkpoint
    from edgepack.pipeline.makers.wire_run import Calibration
    from edgepack.pipeline.request import ExportRequest


def calibration_of(request: ExportRequest, checkpoint: Checkpoint) -> Calibration:
    """What a request's curvature is measured on; raises CalibrationError for a text that is too short."""
    sequences, length = _sample_size(request)
    text = None if request.calibration is None else Path(request.calibration)
    return read_calibration(checkpoint, text, request.device, sequences, length)


def _sample_size(request: ExportRequest) -> tuple[int, int | None]:
    """Sequences of the text and their length: asked for, or as a recipe says for its passes."""
    if request.recipe is not None:
        said = read_request_recipe(request).calibration
        return int(said.get("sequences") or SEQUENCES), said.get("length")
    return request.sequences or SEQUENCES, request.length
