"""Writes what goes beside a finished GGUF: a low-rank correction of its quantisation error, or factors kept apart.

Both are LoRA adapters for llama.cpp. Factorising is left to `quant.passes.lowrank`, the file to `export.lora.low_rank`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import RecipeError
from edgepack.export.inputs import input_statistics
from edgepack.files.source import open_source
from edgepack.gguf import keys
from edgepack.gguf.types import GGMLType, string
from edgepack.progress import silent
from edgepack.quantities import format_size

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.export.plan import ExportPlan, PlannedTensor
    from edgepack.export.recipe.values import PreparedExport
    from edgepack.gguf.types import Value
    from edgepack.progress import Progress
    from edgepack.quant.passes.recipe import PassStep, Recipe

    Pair = tuple[NDArray[np.float32], NDArray[np.float32]]

_MAX_RANK = 4096
_FACTORS, _CORRECTION = "-factors-lora", "-correction-lora"  # ends of adapters' names


def corrected_tensors(plan: ExportPlan) -> list[PlannedTensor]:
    """The file's quantised matrices inside the blocks, whose errors a correction makes smaller.

    Raises:
        RecipeError: there is none.
    """
    found = [
        tensor
        for tensor in plan.tensors
        if tensor.info.name.startswith("blk.") and len(tensor.info.shape) == 2 and tensor.info.type.is_quantized
    ]
    if not found:
        raise RecipeError("lowrank: nothing to correct: the target quantises no matrix inside the blocks")
    return found


def correction_bytes(plan: ExportPlan, step: PassStep) -> int:
    """Bytes that the correction `step` of a file of `plan` will have, names and figures aside."""
    return _Length(plan)(step.settings["rank"] or _rank_for_size(plan, step.settings["size"]))


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
    from edgepack.export.lora.low_rank import adapter_metadata, write_low_rank
    from edgepack.quant.passes.lowrank.factors import correction

    tensors = corrected_tensors(prepared.plan)
    rank = step.settings["rank"] or _rank_for_size(prepared.plan, step.settings["size"])
    factors: dict[str, Pair] = {}
    with progress("correction", len(tensors), " tensors") as advance:
        for tensor in tensors:
            name = tensor.info.name
            error = prepared.reference.tensors[name].read(0, tensor.info.rows) - _weights(model, name)
            found = correction(error, _moment(prepared, name, step.settings["covariance"]), rank)
            factors[name] = (found.left, found.right)
            advance(1)
    architecture, extra = prepared.plan.metadata[keys.ARCHITECTURE], _recipe_of(prepared.plan)
    return write_low_rank(factors, adapter_metadata(architecture, f"correction of {model.name}", extra), path), rank


def _weights(model: Path, name: str) -> NDArray[np.float32]:
    """A tensor of a finished GGUF as llama.cpp sees it: float32 [out, in]."""
    from edgepack.gguf.reader import read_header
    from edgepack.quant.codecs.ggml.codec import dequantize_rows

    header = read_header(model)
    info = header.tensor(name)
    with open_source(model) as stream:
        stream.seek(header.data_start + info.offset)
        return dequantize_rows(info.type, stream.read(info.nbytes), info.rows, info.shape[-1])


def _moment(prepared: PreparedExport, name: str, covariance: str) -> NDArray[np.float32]:
    """E[x·xᵀ] or E[x²] of a GGUF tensor's inputs; ones where it was not measured."""
    rows = prepared.reference.tensors[name]
    assert prepared.calibration is not None
    found = input_statistics(rows, prepared.calibration.statistics)
    if found is None:
        return np.ones(rows.shape[-1], dtype=np.float32)
    hessian = None if covariance == "diagonal" else found.read_hessian()
    return found.mean_square if hessian is None else hessian


class _Length:
    """The length of a correction by its rank.

    Args:
        plan: of the file that is corrected.
    """

    def __init__(self, plan: ExportPlan) -> None:
        from edgepack.export.lora.low_rank import adapter_metadata

        tensors = corrected_tensors(plan)
        self.shapes = {tensor.info.name: (tensor.info.shape[0], tensor.info.shape[1]) for tensor in tensors}
        name = "correction of " + "x" * 64
        self.metadata = adapter_metadata(plan.metadata[keys.ARCHITECTURE], name, _recipe_of(plan))

    def __call__(self, rank: int) -> int:
        from edgepack.export.lora.low_rank import adapter_bytes, adapter_infos

        return adapter_bytes(adapter_infos(self.shapes, dict.fromkeys(self.shapes, rank), GGMLType.F16), self.metadata)


def _rank_for_size(plan: ExportPlan, size: int) -> int:
    """The greatest rank whose adapter has at most `size` bytes."""
    length = _Length(plan)
    if length(1) > size:
        raise RecipeError(
            f"lowrank.size: expected at least {format_size(length(1))} for rank 1, got {format_size(size)}"
        )
    low, high = 1, min(_MAX_RANK, *(min(shape) for shape in length.shapes.values()))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if length(middle) <= size else (low, middle - 1)
    return low


def _recipe_of(plan: ExportPlan) -> dict[str, Value]:
    """What an adapter's metadata says of the recipe."""
    return {keys.RECIPE: string(plan.metadata[keys.RECIPE].value)}


def adapter_suffixes(recipe: Recipe) -> tuple[str, ...]:
    """Ends of the names, after the model's stem, of the adapters that `write_adapters` may write."""
    apart = any(step.settings.get("output") == "adapter" for step in recipe.passes)
    corrects = any(step.is_correction for step in recipe.passes)
    return (_FACTORS,) * apart + (_CORRECTION,) * corrects


def write_adapters(
    prepared: PreparedExport, gguf: Path, progress: Progress = silent
) -> tuple[tuple[Path, ...], tuple[int, ...]]:
    """Write what belongs beside the finished file `gguf`: factors kept apart, corrections.

    Returns:
        (their paths, the ranks of the corrections).
    """
    paths, ranks = [], []
    if prepared.low_rank:
        paths.append(gguf.with_name(f"{gguf.stem}{_FACTORS}.gguf"))
        write_factors_apart(prepared, paths[-1])
    for step in prepared.corrections:
        paths.append(gguf.with_name(f"{gguf.stem}{_CORRECTION}.gguf"))
        ranks.append(write_correction(prepared, step, gguf, paths[-1], progress)[1])
    return tuple(paths), tuple(ranks)


def write_factors_apart(prepared: PreparedExport, path: Path) -> int:
    """Write the factors that passes kept apart as an adapter for the file; its length in bytes.

    Raises:
        AdapterError: a tensor whose factors cannot be rearranged into GGUF's layout.
    """
    from edgepack.export.lora.adapter import Adapter, LowRank
    from edgepack.export.lora.gguf import adapter_factors
    from edgepack.export.lora.low_rank import adapter_metadata, write_low_rank

    low_rank = {name: LowRank(left, right) for name, (left, right) in prepared.low_rank.items()}
    mapped = adapter_factors(Adapter(path, 0.0, low_rank, {}), prepared.reference)
    architecture, extra = prepared.plan.metadata[keys.ARCHITECTURE], _recipe_of(prepared.plan)
    metadata = adapter_metadata(architecture, path.stem, extra)
    return write_low_rank({name: (pair.b, pair.a) for name, pair in mapped.items()}, metadata, path)
