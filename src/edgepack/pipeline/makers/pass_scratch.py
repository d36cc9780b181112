"""Where passes and calibrations keep what they have done, beside the output; a killed run leaves it for `--resume`.

What lies in it is the passes' own; this module says whose it is and when it goes.
"""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.file_digest import file_sha256
from edgepack.pipeline.makers.wire_scratch import own_scratch, run_digest
from edgepack.quant.learning.checkpoints import any_kept

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgepack.model import Checkpoint
    from edgepack.pipeline.request import ExportRequest
    from edgepack.quant.passes.recipe import Recipe


@contextmanager
def pass_scratch(request: ExportRequest, recipe: Recipe, checkpoint: Checkpoint) -> Iterator[Path]:
    """The folder of a request's passes, with what an interrupted run of the same left where `resume` asks for it.

    It goes when the block ends, with an error or without; a kill or Ctrl-C leaves it, and so does an error after a pass
    that trains has kept a checkpoint: hours of learning do not go for a disk that was full.
    """
    with _beside(request, "passes", _digest(request, recipe, checkpoint)) as folder:
        yield folder


@contextmanager
def calibration_scratch(request: ExportRequest) -> Iterator[Path]:
    """A folder for the calibration of a coded file: beside the output, and a killed run leaves it for `--resume`.

    Whether what lies there is of the same weights and text is for `collect` to say.
    """
    with _beside(request, "calibration", "calibration") as folder:
        yield folder


@contextmanager
def _beside(request: ExportRequest, kind: str, digest: str) -> Iterator[Path]:
    """A folder beside the output, owned by the run with this digest; it goes as `pass_scratch` says."""
    output = request.path or Path(request.source.name)
    folder = output.parent / f".edgepack-{kind}-{output.name}"
    own_scratch(folder, output, digest, resume=request.resume)
    try:
        yield folder
    except Exception:
        if not any_kept(folder):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _digest(request: ExportRequest, recipe: Recipe, checkpoint: Checkpoint) -> str:
    """Of all that the passes' results depend on."""
    text = recipe.calibration.get("text")
    read = file_sha256(Path(str(text))) if text is not None and Path(str(text)).is_file() else None
    about = (recipe, read, request.pre, request.device, request.tensor_types, request.pure)
    return run_digest(about, checkpoint)
