"""Plans and makes a GGUF of the variant: which matrix gets which codec, coded one after the other.

How codecs work is left to `edgepack.quant.codecs`, the file to `export.variant_file`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from edgepack.export.variant_file import VariantSpool
from edgepack.quant.codecs.chain import ChainResult, StageReport, encode_chain
from edgepack.quant.codecs.codec import NO_STATISTICS
from edgepack.quant.codecs.native_choice import choose_native
from edgepack.quant.codecs.targets import EdgeTarget, find_edge_target
from edgepack.quant.type_choice import Candidate, llama_order, may_be_quantised

from edgepack.errors import UsageError
from edgepack.gguf.types import GGMLType, TensorInfo, u32
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from edgepack.export.mapped_model import MappedModel
    from edgepack.export.rows import Rows
    from edgepack.quant.codecs.codec import Statistics

    from edgepack.gguf.types import Value
    from edgepack.progress import Progress

_QUANTIZATION_VERSION = u32(2)  # GGML_QNT_VERSION in ggml.h


@dataclass(frozen=True)
class PlannedMatrix:
    """One tensor of the model.

    Attributes:
        name: GGUF name.
        rows: where its weights come from.
        target: its codecs, or None for a tensor that stays float32.
    """

    name: str
    rows: Rows
    target: EdgeTarget | None


@dataclass(frozen=True)
class VariantPlan:
    """A variant before any weight is read.

    Attributes:
        target: the default codecs.
        metadata: every key but the variant's own.
        tensors: in file order.
    """

    target: EdgeTarget
    metadata: Mapping[str, Value]
    tensors: tuple[PlannedMatrix, ...]


@dataclass(frozen=True)
class CodedReport:
    """What became of one tensor.

    Attributes:
        name: GGUF name.
        shape: row-major.
        source_type: in the checkpoint.
        type: the codecs' names joined by `+`, or `F32`.
        native: what it becomes on the device.
        bytes: stored, side data included.
        error: relative squared error; 0 for a tensor that stays float32.
        stages: one report for each stage that was tried.
    """

    name: str
    shape: tuple[int, ...]
    source_type: str
    type: str
    native: GGMLType
    bytes: int
    error: float
    stages: tuple[StageReport, ...]


def parse_tensor_codecs(texts: Sequence[str]) -> tuple[tuple[str, EdgeTarget], ...]:
    """`REGEX=CODEC` options; the first whose expression is found in a tensor's name wins.

    Raises:
        UsageError: no `=`, a bad expression, an unknown codec.
    """
    parsed = []
    for text in texts:
        # An option's own `=` stands after a colon, so the codec begins after the first `=` that a name follows.
        match = re.fullmatch(r"(.+?)=((?:edge-)?[a-z0-9]+(?:[:+].*)?)", text)
        if match is None:
            raise UsageError(f"--tensor-codec '{text}': expected REGEX=CODEC, such as 'attn_.*=vptq3'")
        try:
            re.compile(match[1])
        except re.error as error:
            raise UsageError(f"--tensor-codec '{text}': not a regular expression: {error}") from error
        parsed.append((match[1], find_edge_target(match[2])))
    return tuple(parsed)


def plan_variant(
    model: MappedModel, target: EdgeTarget, overrides: Sequence[tuple[str, EdgeTarget]] = ()
) -> VariantPlan:
    """Every matrix that llama.cpp would quantise gets a codec; all else stays float32.

    Args:
        model: what is exported.
        target: the codecs of matrices that no override matches.
        overrides: (regular expression, codecs), the first found in a name wins.
    """

    def chosen(name: str, rows: Rows) -> EdgeTarget | None:
        if not may_be_quantised(Candidate(name, rows.shape, GGMLType.F32)):
            return None
        return next((codecs for pattern, codecs in overrides if re.search(pattern, name)), target)

    tensors = tuple(
        PlannedMatrix(name, model.tensors[name], chosen(name, model.tensors[name]))
        for name in sorted(model.tensors, key=llama_order)
    )
    metadata = {**model.metadata, "general.quantization_version": _QUANTIZATION_VERSION}
    return VariantPlan(target, metadata, tensors)


def write_variant(
    plan: VariantPlan,
    output: Path,
    statistics: Mapping[str, Statistics] | None = None,
    *,
    skip_harmful: bool = False,
    threads: int | None = None,
    progress: Progress = silent,
) -> tuple[int, tuple[CodedReport, ...]]:
    """Code every planned matrix and write the variant; it appears under its name only when it is whole.

    Args:
        plan: what to write.
        output: the final name.
        statistics: GGUF name → what calibration knows of the matrix's inputs.
        skip_harmful: drop later stages of a chain that do not lower the error.
        threads: for decoding; as many as processors when None.
        progress: told the weights done.

    Returns:
        The file's length in bytes, and a report for each tensor.

    Raises:
        NumericError: a weight is not finite.
        CodecError: a matrix cannot be coded, or statistics are another model's.
        ResourceError: the disk is or becomes too small.
    """
    known = statistics or {}
    spool = VariantSpool(output.parent)
    reports = []
    try:
        with progress("code", sum(prod(tensor.rows.shape) for tensor in plan.tensors), " weights") as advance:
            for tensor in plan.tensors:
                own = known.get(tensor.name, NO_STATISTICS)
                reports.append(_add(spool, tensor, own, skip_harmful, threads))
                advance(prod(tensor.rows.shape))
        return spool.finish(plan.metadata, output), tuple(reports)
    finally:
        spool.close()


def _add(
    spool: VariantSpool, tensor: PlannedMatrix, statistics: Statistics, skip_harmful: bool, threads: int | None
) -> CodedReport:
    shape, source = tensor.rows.shape, tensor.rows.dtype
    weight = tensor.rows.read(0, prod(shape[:-1]))
    if tensor.target is None:
        info = TensorInfo(tensor.name, shape, GGMLType.F32)
        spool.add_plain(info, weight)
        return CodedReport(tensor.name, shape, source, "F32", GGMLType.F32, info.nbytes, 0.0, ())
    result = encode_chain(weight, tensor.target.codecs, statistics, skip_harmful=skip_harmful, threads=threads)
    native = choose_native(result.decoded, _squared_error(weight, result))
    spool.add_coded(tensor.name, shape, native, result)
    kind = "+".join(stage.codec for stage in result.stages)
    return CodedReport(tensor.name, shape, source, kind, native, result.nbytes, result.error, result.reports)


def _squared_error(weight: np.ndarray, result: ChainResult) -> float:
    difference = weight - result.decoded
    return float(np.vdot(difference, difference))
