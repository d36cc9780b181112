"""What coding a matrix gave: in the file, in a journal and in a report. Coding is left to `write`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from edgepack.export.coded.file import fill_draft
from edgepack.gguf.types import GGMLType, TensorInfo
from edgepack.quant.codecs.chain import StageReport

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.export.coded.plan import PlannedMatrix
    from edgepack.gguf.variant import CodedTensor
    from edgepack.quant.codecs.codec import Encoded, Parameter


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
        components: the tensors of the file that hold it.
    """

    name: str
    shape: tuple[int, ...]
    source_type: str
    type: str
    native: GGMLType
    bytes: int
    error: float
    stages: tuple[StageReport, ...]
    components: tuple[TensorInfo, ...]


@dataclass(frozen=True)
class Coded:
    """A coded matrix.

    Attributes:
        outcome: what an interrupted run must remember of it.
        stages: that were kept.
    """

    outcome: Outcome
    stages: tuple[Encoded, ...]


@dataclass(frozen=True)
class Outcome:
    """What coding one matrix gave beside arrays: all that an interrupted run must remember of it.

    Attributes:
        native: name of the type that it becomes on the device.
        error: relative squared error.
        reports: one for each stage that was tried.
        parameters: of the stages that were kept.
    """

    native: str
    error: float
    reports: tuple[StageReport, ...]
    parameters: tuple[Mapping[str, Parameter], ...]

    @cached_property
    def as_json(self) -> dict[str, Any]:
        """All fields, made once: every note of a run writes down every outcome before it."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Outcome:
        """The inverse of `as_json`, after JSON."""
        reports = tuple(StageReport(**report) for report in fields["reports"])
        return cls(fields["native"], fields["error"], reports, tuple(fields["parameters"]))

    def fill(self, draft: CodedTensor) -> CodedTensor:
        """The tensor as it stands in the file."""
        kept = [report.kept for report in self.reports]
        return fill_draft(draft, GGMLType[self.native], self.error, kept, self.parameters)


def entry(tensor: PlannedMatrix, outcome: Outcome | None) -> CodedTensor | TensorInfo:
    """The tensor as it stands in the file: with its draft filled in, where it was coded."""
    if outcome is None or isinstance(tensor.draft, TensorInfo):
        return tensor.draft
    return outcome.fill(tensor.draft)


def report(tensor: PlannedMatrix, outcome: Outcome | None) -> CodedReport:
    """What became of a tensor."""
    shape, source, filled = tensor.rows.shape, tensor.rows.dtype, entry(tensor, outcome)
    if outcome is None or isinstance(filled, TensorInfo):
        info = tensor.draft
        assert isinstance(info, TensorInfo)
        return CodedReport(tensor.name, shape, source, info.type.name, info.type, info.nbytes, 0.0, (), (info,))
    kind = "+".join(stage.codec for stage in filled.stages)
    return CodedReport(
        tensor.name, shape, source, kind, filled.native, filled.stored_bytes, outcome.error, outcome.reports,
        filled.components,
    )  # fmt: skip
