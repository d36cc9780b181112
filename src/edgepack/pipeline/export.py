"""An export from request to files: open the source, choose a target, plan, write, pack.

It joins `export` and `packaging` and prints nothing; options are the command line's.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.atomic_file import check_output
from edgepack.errors import UsageError
from edgepack.export.gguf_file import write_shards
from edgepack.export.mapped_model import MappedModel, open_model
from edgepack.export.naming import file_name
from edgepack.export.plan import ExportPlan, PlanOptions, collectable_importance, plan_export, split_plan
from edgepack.progress import Progress, silent
from edgepack.quant.types.choice import Overrides
from edgepack.quant.types.targets import Target, find_target
from edgepack.quantities import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgepack.export.plan import Importance

# What a size or a gate is met with, from large to small: the types that need no importance matrix.
LADDER = tuple(
    find_target(name)
    for name in ("bf16", "q8", "q6k", "q5km", "q5ks", "q4km", "q4ks", "iq4xs", "q3kl", "q3km", "q3ks", "q2k")
)
# No archive was ever smaller than this share of its file, of block types and of floats (tools/bench_archive.py):
# a plan whose share of the limit is larger need not be tried.
_LEAST_PACKED_SHARE, _LEAST_PACKED_SHARE_OF_FLOATS = 0.88, 0.6


@dataclass(frozen=True)
class ExportRequest:
    """What the user asked for.

    Attributes:
        model: a Hugging Face folder or a GGUF.
        target: the file type; None to take the largest that fits `max_bytes`.
        output: the file (with `pack`: the archive); None for the naming convention's name, here.
        pre: pre-tokenizer's name where its structure is not known.
        adapter: a PEFT LoRA to merge.
        allow_requantize: a quantised GGUF may be quantised again.
        overrides: types chosen by hand.
        imatrix: a file with an importance matrix of the model.
        calibration: a text to collect one over.
        max_bytes: of what is shipped: the GGUF, or with `pack` the archive.
        shard_bytes: split into files of at most this size.
        pack: ship an archive instead of the GGUF.
        resume: go on with an interrupted export.
        threads: that quantise; None for all processors.
        chosen_by_size: the target was left open and may still change when an archive turns out too large.
    """

    model: Path
    target: Target | None
    output: Path | None = None
    pre: str | None = None
    adapter: Path | None = None
    allow_requantize: bool = False
    overrides: Overrides = field(default_factory=Overrides)
    imatrix: Path | None = None
    calibration: Path | None = None
    max_bytes: int | None = None
    shard_bytes: int | None = None
    pack: bool = False
    resume: bool = False
    threads: int | None = None
    chosen_by_size: bool = False


@dataclass(frozen=True)
class PreparedExport:
    """A request with its source opened and its plan made; nothing is written yet.

    Attributes:
        request: with the target decided.
        mapped: the source.
        plan: exact to the byte.
        path: what will appear.
        options: types and importance that any other plan of the same request takes.
    """

    request: ExportRequest
    mapped: MappedModel
    plan: ExportPlan
    path: Path
    options: PlanOptions

    @property
    def target(self) -> Target:
        """The target, chosen by the user or by size."""
        return self.plan.target


def prepare(request: ExportRequest, progress: Progress = silent) -> PreparedExport:
    """Open the source and plan; checks everything that can be checked before work.

    Collecting an importance matrix over `calibration` happens here: the plan stands on it.

    Raises:
        UsageError: options that contradict each other, or a size that no target reaches.
        EdgepackError: whatever the source or the plan finds wrong.
    """
    if request.pack and request.shard_bytes:
        raise UsageError("--pack and --shard-size: an archive is one file, expected only one of them")
    refuse_no_goal(request.target, request.max_bytes)
    mapped, options = open_source(request, progress)
    plan = _plan(request, mapped, options)
    name = file_name(plan.metadata, plan.target.label)
    path = request.output or Path(name if not request.pack else f"{Path(name).stem}.edgepack")
    decided = replace(request, target=plan.target, chosen_by_size=request.target is None)
    return PreparedExport(decided, mapped, plan, path, options)


def open_source(request: ExportRequest, progress: Progress = silent) -> tuple[MappedModel, PlanOptions]:
    """The model that the request names and what decides its types; collects importance where asked.

    Raises:
        EdgepackError: whatever the source finds wrong.
    """
    if request.output is not None:
        check_output(request.output)
    mapped = open_model(
        request.model, pre=request.pre, adapter=request.adapter, allow_requantize=request.allow_requantize
    )
    mapped, importance = _with_importance(request, mapped, progress)
    return mapped, PlanOptions(request.overrides, importance)


def _with_importance(
    request: ExportRequest, mapped: MappedModel, progress: Progress
) -> tuple[MappedModel, Importance | None]:
    """The importance that the request names, read or collected, and the model with a record of it."""
    from edgepack.pipeline.importance import ImportanceRun
    from edgepack.quant.calibration.importance_file import importance_metadata, read_importance

    if request.imatrix is not None and request.calibration is not None:
        raise UsageError("--imatrix and --calibration: expected one of them, got both")
    if request.imatrix is not None:
        matrix = read_importance(request.imatrix)
    elif request.calibration is not None:
        beside = request.output or Path(file_name(mapped.metadata, "imatrix"))
        if request.target is not None:  # what the plan refuses, it refuses before the text is run
            _plan(request, mapped, PlanOptions(request.overrides, collectable_importance(mapped)))
        run = ImportanceRun(request.model, request.calibration, beside, pre=request.pre, adapter=request.adapter)
        matrix = run.collect(resume=True, progress=progress)
    else:
        return mapped, None
    record = importance_metadata(matrix, request.imatrix or request.calibration)
    shapes = {name: rows.shape for name, rows in mapped.tensors.items()}
    return replace(mapped, metadata={**mapped.metadata, **record}), matrix.weights(shapes)


def _plan(request: ExportRequest, mapped: MappedModel, options: PlanOptions) -> ExportPlan:
    if request.target is None:
        return next(_fitting(request, mapped, options))
    plan = plan_export(mapped, request.target, options)
    if request.max_bytes is not None and not request.pack and plan.total_bytes > request.max_bytes:
        raise target_too_large(plan, plan.total_bytes, request.max_bytes)
    return plan


def _fitting(request: ExportRequest, mapped: MappedModel, options: PlanOptions) -> Iterator[ExportPlan]:
    """Plans from large to small that may meet the size."""
    assert request.max_bytes is not None
    smallest = plan_export(mapped, LADDER[-1], options)
    for target in LADDER:
        plan = plan_export(mapped, target, options)
        if worth_trying(plan, plan.total_bytes, request.max_bytes, pack=request.pack):
            yield plan
    raise nothing_fits(smallest, smallest.total_bytes, request.max_bytes)


def worth_trying(plan: ExportPlan, size: int, limit: int, *, pack: bool) -> bool:
    """Whether what is shipped may have at most `limit` bytes, when the files of `plan` have `size`."""
    share = _LEAST_PACKED_SHARE if plan.target.default.is_quantized else _LEAST_PACKED_SHARE_OF_FLOATS
    return size * (share if pack else 1) <= limit


def refuse_no_goal(target: Target | None, max_bytes: int | None) -> None:
    """Raise UsageError when nothing says which type is wanted."""
    if target is None and max_bytes is None:
        raise UsageError("export: expected --target, or --max-size to take the largest that fits")


def target_too_large(plan: ExportPlan, size: int, limit: int) -> UsageError:
    """The target that was asked for makes more than the size that was asked for."""
    return UsageError(
        f"--max-size: {plan.target.name} makes {format_size(size)},"
        f" more than {format_size(limit)}; leave out --target to take the largest that fits"
    )


def archive_too_large(plan: ExportPlan, limit: int) -> UsageError:
    """The archive of the target that was asked for is larger than the size that was asked for."""
    return UsageError(
        f"--max-size: the archive as {plan.target.name} is larger than {format_size(limit)};"
        " leave out --target to take the largest that fits"
    )


def nothing_fits(smallest: ExportPlan, size: int, limit: int) -> UsageError:
    """Not even the smallest type, whose files have `size` bytes, meets the limit."""
    return UsageError(
        f"--max-size {format_size(limit)}: the least possible is {format_size(size)} as {smallest.target.name}"
    )


def write(prepared: PreparedExport, progress: Progress = silent) -> tuple[ExportPlan, list[Path]]:
    """Write what was prepared; gives the plan that was carried out and its files.

    With `pack` and a size, targets are tried from large to small until the archive itself fits.

    Raises:
        EdgepackError: whatever writing finds wrong; nothing is left under a final name then.
    """
    request, plan = prepared.request, prepared.plan
    if not request.pack:
        shards = split_plan(plan, request.shard_bytes) if request.shard_bytes else [plan]
        files = write_shards(shards, prepared.path, threads=request.threads, progress=progress, resume=request.resume)
        return plan, files
    searched = request.chosen_by_size and request.max_bytes is not None
    for attempt in _fitting(request, prepared.mapped, prepared.options) if searched else (plan,):
        if _write_archive(attempt, prepared, progress):
            return attempt, [prepared.path]
    assert request.max_bytes is not None
    raise archive_too_large(plan, request.max_bytes)


def _write_archive(plan: ExportPlan, prepared: PreparedExport, progress: Progress) -> bool:
    """Write the GGUF beside the archive, pack it, remove it; whether the archive meets the size."""
    from edgepack.packaging.pack import pack_archive

    request = prepared.request
    with _temporary_gguf(prepared.path) as gguf:
        write_shards([plan], gguf, threads=request.threads, progress=progress, resume=request.resume)
        result = pack_archive(gguf, prepared.path, threads=request.threads, progress=progress)
    if request.max_bytes is None or result.bytes <= request.max_bytes:
        return True
    prepared.path.unlink()
    return False


@contextmanager
def _temporary_gguf(archive: Path) -> Iterator[Path]:
    """The GGUF on its way into `archive`; removed at the end, whatever happens."""
    check_output(archive)
    path = archive.with_name(f".{archive.stem}.gguf")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
