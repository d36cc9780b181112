"""An export to the GGUF variant from request to file: open the source, calibrate, code, pack.

It joins `export`, `quant.calibration` and `packaging` and prints nothing; options are the command line's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgepack.atomic_file import check_output
from edgepack.errors import UsageError
from edgepack.export.coded.plan import parse_tensor_codecs, plan_variant, settle_plan
from edgepack.export.coded.write import write_variant
from edgepack.export.mapped_model import map_checkpoint, open_merged, open_model
from edgepack.export.naming import file_name
from edgepack.export.rows import SourceRows
from edgepack.progress import Progress, silent
from edgepack.quant.codecs.codec import Statistics
from edgepack.quant.codecs.targets import find_edge_target
from edgepack.quantities import format_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.export.coded.plan import VariantPlan
    from edgepack.export.coded.write import CodedReport
    from edgepack.export.mapped_model import MappedModel
    from edgepack.export.rows import Rows
    from edgepack.gguf.types import Value
    from edgepack.model import Checkpoint
    from edgepack.pipeline.passes import ChangedModel


@dataclass(frozen=True)
class VariantRequest:
    """What the user asked for.

    Attributes:
        model: a Hugging Face folder or a GGUF.
        target: such as `edge-seedlm4`.
        output: the file (with `pack`: the archive); None for the naming convention's name, here.
        tensor_codecs: `REGEX=CODEC` texts.
        skip_harmful: drop later stages of a chain that do not lower the error.
        pre: pre-tokenizer's name where its structure is not known.
        adapter: a PEFT LoRA to merge.
        allow_requantize: a quantised GGUF may be coded.
        imatrix: a file with an importance matrix of the model.
        calibration: a text over which Hessians are collected; the model must be a Hugging Face folder.
        max_bytes: of what is shipped: the variant, or with `pack` the archive.
        pack: ship an archive instead of the GGUF.
        resume: go on with an interrupted export.
        threads: for decoding; None for all processors.
    """

    model: Path
    target: str
    output: Path | None = None
    tensor_codecs: tuple[str, ...] = ()
    skip_harmful: bool = False
    pre: str | None = None
    adapter: Path | None = None
    allow_requantize: bool = False
    imatrix: Path | None = None
    calibration: Path | None = None
    max_bytes: int | None = None
    pack: bool = False
    resume: bool = False
    threads: int | None = None


@dataclass(frozen=True)
class PreparedVariant:
    """A request with its source opened and its plan made; nothing is coded yet.

    Attributes:
        request: what was asked for.
        mapped: the source.
        plan: which matrix gets which codecs; settled, so exact to the byte where no stage is dropped.
        path: what will appear.
        statistics: GGUF name → what calibration knows of a matrix's inputs.
    """

    request: VariantRequest
    mapped: MappedModel
    plan: VariantPlan
    path: Path
    statistics: Mapping[str, Statistics]


def prepare_variant(
    request: VariantRequest, progress: Progress = silent, changed: ChangedModel | None = None
) -> PreparedVariant:
    """Open the source and plan; checks everything that can be checked before work.

    Passes may have changed the model: then `changed` is coded in place of the request's.

    Collecting Hessians over `calibration` happens here: the plan stands on them.

    Raises:
        UsageError: options that contradict each other, an unknown codec, or a size that the variant exceeds.
        EdgepackError: whatever the source finds wrong.
    """
    _refuse_contradictions(request)
    target = find_edge_target(request.target)
    overrides = parse_tensor_codecs(request.tensor_codecs)
    if changed is not None:
        mapped = map_checkpoint(changed.checkpoint, pre=request.pre)
    else:
        mapped = open_model(
            request.model, pre=request.pre, adapter=request.adapter, allow_requantize=request.allow_requantize
        )
    plan = plan_variant(mapped, target, overrides)
    name = file_name(plan.metadata, f"edge-{target.name}".replace(":", "-"))
    path = request.output or Path(f"{Path(name).stem}.edgepack" if request.pack else name)
    check_output(path)
    statistics, record = _statistics(request, mapped, progress, changed)
    if changed is not None:
        record = {**record, **changed.metadata}
    plan = settle_plan(replace(plan, metadata={**plan.metadata, **record}), statistics)
    limit = request.max_bytes
    if limit is not None and not request.pack and not request.skip_harmful and plan.total_bytes > limit:
        raise UsageError(_too_large(request, plan.total_bytes))
    return PreparedVariant(request, mapped, plan, path, statistics)


def _refuse_contradictions(request: VariantRequest) -> None:
    if request.imatrix is not None and request.calibration is not None:
        raise UsageError("--imatrix and --calibration: expected one of them, got both")
    if request.calibration is not None and not request.model.is_dir():
        raise UsageError(f"--calibration with {request.target}: expected a Hugging Face folder, got '{request.model}'")


def _too_large(request: VariantRequest, size: int) -> str:
    assert request.max_bytes is not None
    made = f"{request.target} makes {'an archive of ' if request.pack else ''}{format_size(size)}"
    return f"--max-size: {made}, more than {format_size(request.max_bytes)}; choose a codec with fewer bits"


def write_prepared(prepared: PreparedVariant, progress: Progress = silent) -> tuple[int, tuple[CodedReport, ...]]:
    """Code and write; gives the length of what was shipped and a report for each tensor.

    Raises:
        UsageError: what was shipped exceeds the size; it is removed.
        EdgepackError: whatever coding finds wrong; nothing is left under the final name then.
    """
    request = prepared.request
    path = prepared.path.with_name(f".{prepared.path.stem}.gguf") if request.pack else prepared.path
    try:
        size, reports = write_variant(
            prepared.plan, path, prepared.statistics,
            skip_harmful=request.skip_harmful, threads=request.threads, progress=progress, resume=request.resume,
        )  # fmt: skip
        if request.pack:
            from edgepack.packaging.pack import pack_archive

            size = pack_archive(path, prepared.path, threads=request.threads, progress=progress).bytes
    finally:
        if request.pack:
            path.unlink(missing_ok=True)
    if request.max_bytes is not None and size > request.max_bytes:
        prepared.path.unlink()
        raise UsageError(_too_large(request, size))
    return size, reports


def _statistics(
    request: VariantRequest, mapped: MappedModel, progress: Progress, changed: ChangedModel | None
) -> tuple[dict[str, Statistics], dict[str, Value]]:
    """GGUF name → what calibration knows of a matrix's inputs, and the keys that name an importance matrix."""
    if request.calibration is not None:
        checkpoint = open_merged(request.model, request.adapter) if changed is None else changed.checkpoint
        return _collected(request.calibration, checkpoint, mapped, progress), {}
    if request.imatrix is None:
        return {}, {}
    from edgepack.quant.calibration.importance_file import importance_metadata, read_importance

    matrix = read_importance(request.imatrix)
    weights = matrix.weights({name: rows.shape for name, rows in mapped.tensors.items()})
    # A stack of experts is coded as one matrix, so its columns weigh what they weigh on average.
    statistics = {name: Statistics(np.atleast_2d(weight).mean(axis=0)) for name, weight in weights.items()}
    return statistics, importance_metadata(matrix, request.imatrix)


def _collected(text: Path, checkpoint: Checkpoint, mapped: MappedModel, progress: Progress) -> dict[str, Statistics]:
    """Hessians over a text, by the matrix's own name in the checkpoint."""
    from edgepack.pipeline.importance import read_text
    from edgepack.quant.calibration.collect import collect
    from edgepack.quant.calibration.text import text_sequences

    tokens = text_sequences(checkpoint, read_text(text))
    known = collect(checkpoint, tokens, with_hessian=True, progress=progress).statistics
    found = {}
    for name, source in _checkpoint_names(mapped.tensors).items():
        if source in known:
            found[name] = Statistics(known[source].mean_square, known[source].hessian)
    return found


def _checkpoint_names(tensors: Mapping[str, Rows]) -> dict[str, str]:
    """GGUF name → checkpoint name of every tensor that is one of the checkpoint's, its rows perhaps permuted."""
    names = {}
    for name, rows in tensors.items():
        below: object = rows
        while not isinstance(below, SourceRows) and hasattr(below, "base"):
            below = below.base
        if isinstance(below, SourceRows):
            names[name] = below.name
    return names
