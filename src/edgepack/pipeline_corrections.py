"""Writes what goes beside a finished GGUF: a low-rank correction of its quantisation error, or factors kept apart.

Both are LoRA adapters for llama.cpp. Factorising is left to `quant.passes.lowrank`, the file to `export.low_rank_gguf`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import RecipeError
from edgepack.gguf.types import GGMLType, string
from edgepack.pipeline_passes import source_names
from edgepack.progress import silent
from edgepack.quantities import format_size

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.export.plan import PlannedTensor
    from edgepack.pipeline_passes import PreparedExport
    from edgepack.progress import Progress
    from edgepack.recipe import PassStep

    Pair = tuple[NDArray[np.float32], NDArray[np.float32]]

_MAX_RANK = 4096


def corrected_tensors(prepared: PreparedExport) -> list[PlannedTensor]:
    """The file's quantised matrices inside the blocks, whose errors a correction makes smaller."""
    return [
        tensor
        for tensor in prepared.plan.tensors
        if tensor.info.name.startswith("blk.") and len(tensor.info.shape) == 2 and tensor.info.type.is_quantized
    ]


def write_correction(
    prepared: PreparedExport, step: PassStep, model: Path, path: Path, progress: Progress = silent
) -> tuple[int, int]:
    """Write the low-rank correction of the finished file `model` to `path`.

    Args:
        prepared: what `model` was written from; its calibration has the moments.
        step: a `lowrank` step with method `correction`.
        model: the finished GGUF.
        path: the adapter's file.
        progress: told of each tensor done.

    Returns:
        (the adapter's length in bytes, its rank).

    Raises:
        RecipeError: nothing is quantised, or the size is too small for rank 1 (the text says how much is needed).
    """
    from edgepack.export.low_rank_gguf import adapter_metadata, write_low_rank
    from edgepack.quant.passes.lowrank.factors import correction

    tensors = corrected_tensors(prepared)
    if not tensors:
        raise RecipeError("lowrank: nothing to correct: the target quantises no matrix inside the blocks")
    rank = step.settings["rank"] or _rank_for_size(prepared, tensors, step.settings["size"])
    factors: dict[str, Pair] = {}
    with progress("correction", len(tensors), " tensors") as advance:
        for tensor in tensors:
            name = tensor.info.name
            error = prepared.reference.tensors[name].read(0, tensor.info.rows) - _weights(model, name)
            found = correction(error, _moment(prepared, name, step.settings["covariance"]), rank)
            factors[name] = (found.left, found.right)
            advance(1)
    extra = {"edgepack.recipe": string(prepared.plan.metadata["edgepack.recipe"].value)}
    architecture = prepared.plan.metadata["general.architecture"]
    return write_low_rank(factors, adapter_metadata(architecture, f"correction of {model.name}", extra), path), rank


def _weights(model: Path, name: str) -> NDArray[np.float32]:
    """A tensor of a finished GGUF as llama.cpp sees it: float32 [out, in]."""
    from edgepack.gguf.reader import read_header
    from edgepack.quant.codecs.ggml import dequantize_rows

    header = read_header(model)
    info = header.tensor(name)
    with model.open("rb") as stream:
        stream.seek(header.data_start + info.offset)
        return dequantize_rows(info.type, stream.read(info.nbytes), info.rows, info.shape[-1])


def _moment(prepared: PreparedExport, name: str, covariance: str) -> NDArray[np.float32]:
    """E[x·xᵀ] or E[x²] of a GGUF tensor's inputs; ones where it was not measured."""
    rows = prepared.reference.tensors[name]
    assert prepared.calibration is not None
    for source in sorted(source_names(rows)):
        found = prepared.calibration.statistics.get(source)
        if found is not None:
            return found.mean_square if covariance == "diagonal" or found.hessian is None else found.hessian
    return np.ones(rows.shape[-1], dtype=np.float32)


def _rank_for_size(prepared: PreparedExport, tensors: list[PlannedTensor], size: int) -> int:
    """The greatest rank whose adapter has at most `size` bytes."""
    from edgepack.export.low_rank_gguf import adapter_bytes, adapter_infos, adapter_metadata

    extra = {"edgepack.recipe": string(prepared.plan.metadata["edgepack.recipe"].value)}
    metadata = adapter_metadata(prepared.plan.metadata["general.architecture"], "correction of " + "x" * 64, extra)
    shapes = {tensor.info.name: (tensor.info.shape[0], tensor.info.shape[1]) for tensor in tensors}

    def length(rank: int) -> int:
        return adapter_bytes(adapter_infos(shapes, dict.fromkeys(shapes, rank), GGMLType.F16), metadata)

    if length(1) > size:
        raise RecipeError(
            f"lowrank.size: expected at least {format_size(length(1))} for rank 1, got {format_size(size)}"
        )
    most = min(_MAX_RANK, *(min(shape) for shape in shapes.values()))
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if length(middle) <= size else (low, middle - 1)
    return low


def write_factors_apart(prepared: PreparedExport, path: Path) -> int:
    """Write the factors that passes kept apart as an adapter for the file; its length in bytes.

    Raises:
        AdapterError: a tensor whose factors cannot be rearranged into GGUF's layout.
    """
    from edgepack.export.adapter import Adapter, LowRank
    from edgepack.export.adapter_gguf import adapter_factors
    from edgepack.export.low_rank_gguf import adapter_metadata, write_low_rank

    low_rank = {name: LowRank(left, right) for name, (left, right) in prepared.low_rank.items()}
    mapped = adapter_factors(Adapter(path, 0.0, low_rank, {}), prepared.reference)
    extra = {"edgepack.recipe": string(prepared.plan.metadata["edgepack.recipe"].value)}
    metadata = adapter_metadata(prepared.plan.metadata["general.architecture"], path.stem, extra)
    return write_low_rank({name: (pair.b, pair.a) for name, pair in mapped.items()}, metadata, path)
