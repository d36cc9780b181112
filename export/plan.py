"""The plan of an export: each tensor's type and bytes, exact, before any weight is read.

Writing it is left to `export.gguf_file`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from io import BytesIO
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import CalibrationError
from edgepack.export.formats.safetensors_file import ITEM_BYTES
from edgepack.export.rows import StoredBlocks
from edgepack.files.source import WatchedFiles
from edgepack.gguf import keys
from edgepack.gguf.types import GGMLType, TensorInfo, Value, ValueType, u32
from edgepack.gguf.writer import GGUFWriter
from edgepack.quant.types.choice import (
    Candidate,
    Overrides,
    choose_types,
    llama_order,
    needs_importance_matrix,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.export.mapped import MappedModel
    from edgepack.export.rows import Rows
    from edgepack.quant.codecs.ggml.encoders import Quantizer
    from edgepack.quant.types.targets import Target

    Importance = Mapping[str, NDArray[np.float32]]

QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION in ggml.h


def stored_bytes(dtype: str, count: int) -> int:
    """Bytes of `count` weights in a source's type; for packed types (`awq4`, `nf4`) without their scales."""
    if dtype in ITEM_BYTES:
        return count * ITEM_BYTES[dtype]
    if dtype.upper() in GGMLType.__members__:
        kind = GGMLType[dtype.upper()]
        return count * kind.block_bytes // kind.block_size
    bits = re.search(r"(\d+)$", dtype)
    return count * int(bits[1]) // 8 if bits else count * 4


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the output.

    Attributes:
        info: name, shape, type.
        rows: where its weights come from.
        importance: float32 [columns], or [experts, columns] for an expert stack; None without.
        quantizer: whose encoder makes the blocks.
    """

    info: TensorInfo
    rows: Rows
    importance: NDArray[np.float32] | None = None
    quantizer: Quantizer = "edgepack"


@dataclass(frozen=True)
class ExportPlan:
    """All of an output file but its weights.

    Attributes:
        label: the source, for messages.
        target: the file type.
        metadata: every key, in file order.
        tensors: in file order.
        sources: the files that weights come from; an interrupted export goes on only while they are unchanged.
    """

    label: str
    target: Target
    metadata: Mapping[str, Value]
    tensors: tuple[PlannedTensor, ...]
    sources: WatchedFiles = field(default_factory=WatchedFiles)

    @property
    def infos(self) -> list[TensorInfo]:
        """The tensors' header entries."""
        return [tensor.info for tensor in self.tensors]

    @cached_property
    def layout(self) -> GGUFWriter:
        """The file's header and lengths, computed as for writing; nothing is written through it."""
        return GGUFWriter(BytesIO(), self.metadata, self.infos)

    @property
    def total_bytes(self) -> int:
        """Exact length of the file."""
        return self.layout.total_bytes

    @property
    def source_bytes(self) -> int:
        """What the same tensors take in the source."""
        return sum(stored_bytes(tensor.rows.dtype, prod(tensor.info.shape)) for tensor in self.tensors)


@dataclass(frozen=True)
class PlanOptions:
    """What the user decides beside the target.

    Attributes:
        overrides: types chosen by hand.
        importance: GGUF tensor name → importance, or None.
        quantizer: `edgepack` for its own encoders, `ggml` for the bytes of llama.cpp's own quantiser.
    """

    overrides: Overrides = field(default_factory=Overrides)
    importance: Importance | None = None
    quantizer: Quantizer = "edgepack"


def plan_export(model: MappedModel, target: Target, options: PlanOptions = PlanOptions()) -> ExportPlan:
    """Choose every tensor's type and place, in llama.cpp's order.

    Raises:
        UsageError: an override that a tensor's rows cannot hold.
        CalibrationError: the target needs an importance matrix and has none, or it is another model's.
    """
    candidates = [Candidate(name, rows.shape, GGMLType.F32) for name, rows in model.tensors.items()]
    types = choose_types(
        candidates, target, model.facts, options.overrides, has_importance=options.importance is not None
    )
    types |= _kept_types(model, options.overrides)
    importance = options.importance or {}
    _check_importance(model, types, target, importance)
    tensors = tuple(
        PlannedTensor(
            TensorInfo(name, model.tensors[name].shape, types[name]),
            model.tensors[name],
            importance.get(name),
            options.quantizer,
        )
        for name in sorted(model.tensors, key=llama_order)
    )
    metadata = dict(model.metadata)
    metadata[keys.QUANTIZATION_VERSION] = u32(QUANTIZATION_VERSION)
    metadata[keys.FILE_TYPE] = u32(target.file_type)
    return ExportPlan(model.label, target, metadata, tensors, model.sources)


def _kept_types(model: MappedModel, overrides: Overrides) -> dict[str, GGMLType]:
    """Types of tensors that the checkpoint stores in one of ggml's; what is quantised once is not quantised again."""
    kept = {name: model.tensors[name] for name in model.kept if overrides.matching(name) is None}
    return {name: rows.stored_type for name, rows in kept.items() if isinstance(rows, StoredBlocks)}


def split_plan(plan: ExportPlan, shard_bytes: int) -> list[ExportPlan]:
    """The plan in shards of at most `shard_bytes` of tensor data each, as llama.cpp's `gguf-split` makes them.

    All metadata is in the first; each names its number, their count and the tensors in all. A tensor larger
    than `shard_bytes` gets a shard of its own.
    """
    groups: list[list[PlannedTensor]] = [[]]
    held = 0
    for tensor in plan.tensors:
        if groups[-1] and held + tensor.info.nbytes > shard_bytes:
            groups.append([])
            held = 0
        groups[-1].append(tensor)
        held += tensor.info.nbytes
    if len(groups) == 1:
        return [plan]
    shards = []
    for number, group in enumerate(groups):
        split = {
            keys.SPLIT_NUMBER: Value(ValueType.UINT16, number),
            keys.SPLIT_COUNT: Value(ValueType.UINT16, len(groups)),
            keys.SPLIT_TENSORS: Value(ValueType.INT32, len(plan.tensors)),
        }
        metadata = (dict(plan.metadata) if number == 0 else {}) | split
        shards.append(replace(plan, metadata=metadata, tensors=tuple(group)))
    return shards


def shard_path(path: Path, number: int, count: int) -> Path:
    """`x.gguf` → `x-00001-of-00003.gguf`; `number` counts from 0 (`llama_split_path`)."""
    return path.with_name(f"{path.stem}-{number + 1:05d}-of-{count:05d}{path.suffix}")


def shard_paths(path: Path, count: int) -> list[Path]:
    """The files of a model of `count` shards, in order."""
    return [shard_path(path, number, count) for number in range(count)]


def collectable_importance(model: MappedModel) -> Importance:
    """What a run of a text through the model will give: a matrix for all but layers that are never run; all ones."""
    shapes = {name: _importance_shape(rows) for name, rows in model.tensors.items() if len(rows.shape) > 1}
    one = np.ones(1, dtype=np.float32)
    return {name: np.broadcast_to(one, shape) for name, shape in shapes.items() if not _is_prediction(name, model)}


def _importance_shape(rows: Rows) -> tuple[int, ...]:
    return rows.shape[-1:] if len(rows.shape) < 3 else (rows.shape[0], rows.shape[-1])


def _is_prediction(name: str, model: MappedModel) -> bool:
    """Whether a tensor belongs to the layers after the last (`nextn_predict_layers`), which only drafting runs."""
    architecture = model.facts.architecture
    found = [model.metadata.get(f"{architecture}.{key}") for key in ("block_count", "nextn_predict_layers")]
    block = re.match(r"blk\.(\d+)\.", name)
    if block is None or any(value is None or type(value.value) is not int for value in found):
        return False
    blocks, extra = (value.value for value in found if value is not None)
    return bool(int(block[1]) >= blocks - extra)


def _remedy(name: str, model: MappedModel, *, given: bool) -> str:
    if _is_prediction(name, model):
        layer = name.split(".")[1]
        return (
            f"none can be collected, because layer {layer} predicts further tokens and runs only when drafting:"
            f" keep it in another type, --tensor-type 'blk\\.{layer}\\.=q4_k'"
        )
    if given:
        return "the one that was given has none for it"
    return "give --calibration TEXT or --imatrix FILE"


def _check_importance(
    model: MappedModel, types: Mapping[str, GGMLType], target: Target, importance: Importance
) -> None:
    for name, rows in model.tensors.items():
        weights = importance.get(name)
        if weights is None:
            if needs_importance_matrix(name, types[name], target):
                what = f"{target.name}: tensor '{name}' as {types[name].name} needs an importance matrix:"
                raise CalibrationError(f"{what} {_remedy(name, model, given=bool(importance))}")
            continue
        expected = _importance_shape(rows)
        if weights.shape != expected:
            raise CalibrationError(
                f"importance matrix: tensor '{name}': expected {list(expected)}, got {list(weights.shape)}:"
                " it was made for another model"
            )
