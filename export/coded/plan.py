"""Plans a GGUF of the variant: which matrix gets which codec, and the file's length to the byte.

How codecs work is left to `edgepack.quant.codecs`, bytes to `export.coded.file`, coding to `export.coded.write`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

from edgepack.errors import UsageError
from edgepack.export.coded.file import VariantLayout, draft_tensor
from edgepack.export.plan import stored_bytes
from edgepack.expressions import ExpressionError, expression
from edgepack.files.source import WatchedFiles
from edgepack.gguf import keys
from edgepack.gguf.types import GGMLType, TensorInfo, u32
from edgepack.quant.codecs.chain import settle, suited_to
from edgepack.quant.codecs.codec import NO_STATISTICS
from edgepack.quant.codecs.targets import EdgeTarget, find_edge_target
from edgepack.quant.types.choice import Candidate, llama_order, may_be_quantised

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from edgepack.export.mapped import MappedModel
    from edgepack.export.rows import Rows
    from edgepack.gguf.types import Value
    from edgepack.gguf.variant import CodedTensor
    from edgepack.quant.codecs.codec import Statistics

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

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(rows, columns) that codecs see."""
        return prod(self.rows.shape[:-1]), self.rows.shape[-1]

    @cached_property
    def draft(self) -> CodedTensor | TensorInfo:
        """Its entry in the file, as far as it is known before coding."""
        if self.target is None:
            return TensorInfo(self.name, self.rows.shape, GGMLType.F32)
        return draft_tensor(self.name, self.rows.shape, self.matrix_shape, self.target.codecs)

    @property
    def components(self) -> tuple[TensorInfo, ...]:
        """The tensors of the file that will hold it."""
        return (self.draft,) if isinstance(self.draft, TensorInfo) else self.draft.components

    def read_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """As `RowSource.read_rows`."""
        return self.rows.read(start, stop)

    def read(self) -> NDArray[np.float32]:
        """All its weights, float32 [rows, columns]."""
        return self.rows.read(0, self.matrix_shape[0])


@dataclass(frozen=True)
class VariantPlan:
    """A variant before any weight is read.

    Attributes:
        target: the default codecs.
        metadata: every key but the variant's own.
        tensors: in file order.
        sources: the files that weights come from; an interrupted export goes on only while they are unchanged.
        notes: a line for people on each choice that was made by the model's size.
    """

    target: EdgeTarget
    metadata: Mapping[str, Value]
    tensors: tuple[PlannedMatrix, ...]
    sources: WatchedFiles = field(default_factory=WatchedFiles)
    notes: tuple[str, ...] = ()

    @cached_property
    def layout(self) -> VariantLayout:
        """The draft of the file: exact, but for stages that are dropped.

        Raises:
            CodecError: a codec is still to be settled (`settle_plan`).
        """
        return VariantLayout(self.metadata, tuple(tensor.draft for tensor in self.tensors))

    @property
    def total_bytes(self) -> int:
        """Exact length of the file; its largest where stages may be dropped."""
        return self.layout.total_bytes

    @property
    def source_bytes(self) -> int:
        """What the same tensors take in the source."""
        return sum(stored_bytes(tensor.rows.dtype, prod(tensor.rows.shape)) for tensor in self.tensors)


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
            expression(match[1])
        except ExpressionError as error:
            raise UsageError(f"--tensor-codec '{text}': {error}") from error
        parsed.append((match[1], find_edge_target(match[2])))
    return tuple(parsed)


def _found(pattern: str, name: str) -> bool:
    """Whether the option's expression is found in a name; raises UsageError where that takes too long."""
    try:
        return expression(pattern).search(name)
    except ExpressionError as error:
        raise UsageError(f"--tensor-codec '{pattern}': {error}") from None


def plan_variant(
    model: MappedModel, target: EdgeTarget, overrides: Sequence[tuple[str, EdgeTarget]] = ()
) -> VariantPlan:
    """Every matrix that llama.cpp would quantise gets a codec; all else stays float32.

    Args:
        model: what is exported.
        target: the codecs of matrices that no override matches.
        overrides: (regular expression, codecs), the first found in a name wins.

    Raises:
        UsageError: an expression that is found in no matrix's name.
    """
    matrices = [
        name for name, rows in model.tensors.items() if may_be_quantised(Candidate(name, rows.shape, GGMLType.F32))
    ]
    for pattern, _ in overrides:
        if not any(_found(pattern, name) for name in matrices):
            raise UsageError(f"--tensor-codec '{pattern}': matches no matrix; they are such as '{min(matrices)}'")

    def chosen(name: str, rows: Rows) -> EdgeTarget | None:
        if not may_be_quantised(Candidate(name, rows.shape, GGMLType.F32)):
            return None
        return next((codecs for pattern, codecs in overrides if _found(pattern, name)), target)

    tensors = tuple(
        PlannedMatrix(name, model.tensors[name], chosen(name, model.tensors[name]))
        for name in sorted(model.tensors, key=llama_order)
    )
    metadata = {**model.metadata, keys.QUANTIZATION_VERSION: _QUANTIZATION_VERSION}
    return _suited(VariantPlan(target, metadata, tensors, model.sources))


def _suited(plan: VariantPlan) -> VariantPlan:
    """The plan with codecs as they are for as many weights as each target codes."""
    coded: dict[EdgeTarget, int] = {}
    for tensor in plan.tensors:
        if tensor.target is not None:
            coded[tensor.target] = coded.get(tensor.target, 0) + prod(tensor.matrix_shape)
    suited: dict[EdgeTarget | None, EdgeTarget | None] = {None: None}
    notes: dict[str, None] = {}
    for target, weights in coded.items():
        found = [suited_to(codec, weights) for codec in target.codecs]
        suited[target] = replace(target, codecs=tuple(codec for codec, _note in found))
        notes |= {note: None for _codec, note in found if note}
    tensors = tuple(replace(tensor, target=suited[tensor.target]) for tensor in plan.tensors)
    return replace(plan, tensors=tensors, notes=tuple(notes))


def settle_plan(plan: VariantPlan, statistics: Mapping[str, Statistics]) -> VariantPlan:
    """The plan with every choice made that lengths depend on; reads a matrix only where its codecs have one.

    Args:
        plan: what to write.
        statistics: GGUF name → what calibration knows of the matrix's inputs.

    Raises:
        NumericError: a weight is not finite.
    """
    return replace(plan, tensors=tuple(_settled(tensor, statistics) for tensor in plan.tensors))


def _settled(tensor: PlannedMatrix, statistics: Mapping[str, Statistics]) -> PlannedMatrix:
    if tensor.target is None:
        return tensor
    own = statistics.get(tensor.name, NO_STATISTICS)
    codecs = settle(tensor.target.codecs, tensor, own)
    return tensor if codecs == tensor.target.codecs else replace(tensor, target=replace(tensor.target, codecs=codecs))
