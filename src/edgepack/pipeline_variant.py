"""An export to the GGUF variant from request to file: open the source, calibrate, code, pack.

It joins `export`, `quant.calibration` and `packaging` and prints nothing; options are the command line's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgepack.atomic_file import check_output
from edgepack.errors import UsageError
from edgepack.export.mapped_model import open_model
from edgepack.export.naming import file_name
from edgepack.export.rows import SourceRows
from edgepack.export.variant import parse_tensor_codecs, plan_variant, write_variant
from edgepack.progress import Progress, silent
from edgepack.quant.codecs.codec import Statistics
from edgepack.quant.codecs.targets import find_edge_target

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.export.mapped_model import MappedModel
    from edgepack.export.rows import Rows
    from edgepack.export.variant import CodedReport, VariantPlan


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
        imatrix: a file with an importance matrix of the model.
        calibration: a text over which Hessians are collected; the model must be a Hugging Face folder.
        pack: ship an archive instead of the GGUF.
        threads: for decoding; None for all processors.
    """

    model: Path
    target: str
    output: Path | None = None
    tensor_codecs: tuple[str, ...] = ()
    skip_harmful: bool = False
    pre: str | None = None
    imatrix: Path | None = None
    calibration: Path | None = None
    pack: bool = False
    threads: int | None = None


@dataclass(frozen=True)
class PreparedVariant:
    """A request with its source opened and its plan made; nothing is coded yet.

    Attributes:
        request: what was asked for.
        mapped: the source.
        plan: which matrix gets which codecs.
        path: what will appear.
    """

    request: VariantRequest
    mapped: MappedModel
    plan: VariantPlan
    path: Path


def prepare_variant(request: VariantRequest) -> PreparedVariant:
    """Open the source and plan; checks everything that can be checked before work.

    Raises:
        UsageError: options that contradict each other, an unknown codec.
        EdgepackError: whatever the source finds wrong.
    """
    if request.imatrix is not None and request.calibration is not None:
        raise UsageError("--imatrix and --calibration: expected one of them, got both")
    if request.calibration is not None and not request.model.is_dir():
        raise UsageError(f"--calibration with {request.target}: expected a Hugging Face folder, got '{request.model}'")
    target = find_edge_target(request.target)
    overrides = parse_tensor_codecs(request.tensor_codecs)
    mapped = open_model(request.model, pre=request.pre)
    plan = plan_variant(mapped, target, overrides)
    name = file_name(plan.metadata, f"edge-{target.name}".replace(":", "-"))
    path = request.output or Path(f"{Path(name).stem}.edgepack" if request.pack else name)
    check_output(path)
    return PreparedVariant(request, mapped, plan, path)


def write_prepared(prepared: PreparedVariant, progress: Progress = silent) -> tuple[int, tuple[CodedReport, ...]]:
    """Calibrate, code and write; gives the length of what was shipped and a report for each tensor.

    Raises:
        EdgepackError: whatever coding finds wrong; nothing is left under the final name then.
    """
    request = prepared.request
    statistics = _statistics(prepared, progress)
    path = prepared.path.with_name(f".{prepared.path.stem}.gguf") if request.pack else prepared.path
    try:
        size, reports = write_variant(
            prepared.plan, path, statistics,
            skip_harmful=request.skip_harmful, threads=request.threads, progress=progress,
        )  # fmt: skip
        if request.pack:
            from edgepack.packaging.pack import pack_archive

            size = pack_archive(path, prepared.path, threads=request.threads, progress=progress).bytes
    finally:
        if request.pack:
            path.unlink(missing_ok=True)
    return size, reports


def _statistics(prepared: PreparedVariant, progress: Progress) -> dict[str, Statistics]:
    """GGUF name → what calibration knows of a matrix's inputs."""
    request = prepared.request
    if request.imatrix is not None:
        from edgepack.quant.importance_file import read_importance

        shapes = {name: rows.shape for name, rows in prepared.mapped.tensors.items()}
        weights = read_importance(request.imatrix).weights(shapes)
        # A stack of experts is coded as one matrix, so its columns weigh what they weigh on average.
        return {name: Statistics(np.atleast_2d(weight).mean(axis=0)) for name, weight in weights.items()}
    if request.calibration is not None:
        return _collected(prepared, request.calibration, progress)
    return {}


def _collected(prepared: PreparedVariant, text: Path, progress: Progress) -> dict[str, Statistics]:
    """Hessians over a text, by the matrix's own name in the checkpoint."""
    from edgepack.export.checkpoint import open_checkpoint
    from edgepack.pipeline_importance import read_text
    from edgepack.quant.calibration.collect import collect
    from edgepack.quant.calibration.text import text_sequences

    checkpoint = open_checkpoint(prepared.request.model)
    tokens = text_sequences(checkpoint, read_text(text))
    known = collect(checkpoint, tokens, with_hessian=True, progress=progress).statistics
    found = {}
    for name, source in _checkpoint_names(prepared.mapped.tensors).items():
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
