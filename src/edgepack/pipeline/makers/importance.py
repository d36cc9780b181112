"""The importance matrix that a request names or has collected, and the record of it in the file.

A dry run plans with its shape alone.
Running a text is `pipeline.importance`'s.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgepack.export.naming import file_name
from edgepack.export.plan import PlanOptions, collectable_importance, plan_export
from edgepack.pipeline.makers.located import located_of
from edgepack.pipeline.makers.opened import merged_adapter, overrides_of
from edgepack.quant.types.targets import find_target
from edgepack.text_file import read_text

if TYPE_CHECKING:
    from edgepack.edge.llama.importance_collect import CollectOptions
    from edgepack.export.mapped import MappedModel
    from edgepack.export.plan import Importance
    from edgepack.pipeline.request import ExportRequest
    from edgepack.quant.calibration.importance import ImportanceMatrix

SEQUENCES = 64  # pieces of a calibration text, as passes take them


def with_importance(request: ExportRequest, mapped: MappedModel) -> tuple[MappedModel, Importance | None]:
    """The importance that the request names, read or collected, and the model with a record of it.

    Raises:
        CalibrationError: the matrix is another model's, the text too short, or the target needs what no text gives.
    """
    from edgepack.quant.calibration.importance_file import importance_metadata, read_importance

    if request.imatrix is not None:
        origin, matrix = Path(request.imatrix), read_importance(Path(request.imatrix))
    elif request.calibration is not None:
        origin = Path(request.calibration)
        matrix, note = (_foreseen if request.dry_run else _collected)(request, mapped, origin)
        mapped = replace(mapped, notes=(*mapped.notes, note))
    else:
        return mapped, None
    shapes = {name: rows.shape for name, rows in mapped.tensors.items()}
    metadata = {**mapped.metadata, **importance_metadata(matrix, origin)}
    return replace(mapped, metadata=metadata), matrix.weights(shapes)


def _collected(request: ExportRequest, mapped: MappedModel, text: Path) -> tuple[ImportanceMatrix, str]:
    """The importance over a sample of a text, and the line that says how large the sample is."""
    from edgepack.pipeline.importance import ImportanceRun

    if request.target is not None:  # what the plan refuses, it refuses before the text is run
        options = PlanOptions(overrides_of(request), collectable_importance(mapped))
        plan_export(mapped, find_target(request.target), options)
    sample = _sample(request)
    beside = request.path or Path(file_name(mapped.metadata, "imatrix"))
    run = ImportanceRun(
        request.source, text, beside, sample, pre=request.pre, adapter=merged_adapter(request), crew=request.crew,
        located=located_of(request), original=request.original,
    )  # fmt: skip
    return run.collect(resume=True, progress=request.progress), _note(sample, text)


def _foreseen(request: ExportRequest, mapped: MappedModel, text: Path) -> tuple[ImportanceMatrix, str]:
    """What a dry run plans with: types and bytes stand on which weights have importance, not on what it is."""
    from edgepack.quant.calibration.importance import ImportanceEntry, ImportanceMatrix

    read_text(text)  # what cannot be read is refused as it would be
    sample = _sample(request)
    entries = {}
    for name, ones in collectable_importance(mapped).items():
        sums = np.atleast_2d(np.asarray(ones, np.float64))
        entries[name] = ImportanceEntry(sums, np.ones(len(sums), np.int64))
    return ImportanceMatrix(entries, 0, sample.chunk, (text.name,)), _note(sample, text)


def _sample(request: ExportRequest) -> CollectOptions:
    """Which pieces of the text are run."""
    from edgepack.edge.llama.importance_collect import DEFAULT_CHUNK, CollectOptions

    return CollectOptions(request.length or DEFAULT_CHUNK, request.sequences or SEQUENCES, spread=True)


def _note(sample: CollectOptions, text: Path) -> str:
    taken = f"at most {sample.chunks} pieces of {sample.chunk} tokens, spread over {text.name}"
    return f"importance: {taken}; --sequences and --length decide"
