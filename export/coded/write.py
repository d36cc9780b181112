"""Codes a planned variant matrix by matrix, and goes on where an interrupted run stopped.

Which matrix gets which codec is left to `export.coded.plan`, how bytes lie to `export.coded.file`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

from edgepack.errors import CheckpointError
from edgepack.export.coded.crew import crew_coded
from edgepack.export.coded.file import VariantWriter
from edgepack.export.coded.outcome import Coded, CodedReport, Outcome, entry, report
from edgepack.export.coded.plan import PlannedMatrix, VariantPlan, settle_plan
from edgepack.export.interrupted import journaled_output, noted
from edgepack.gguf.types import TensorInfo
from edgepack.gguf.variant import CodedTensor
from edgepack.progress import silent
from edgepack.quant.codecs.chain import ChainResult, encode_chain, open_chain
from edgepack.quant.codecs.codec import NO_STATISTICS, CodesTogether
from edgepack.quant.codecs.native_choice import choose_native

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from edgepack.crew import Crew
    from edgepack.progress import Progress
    from edgepack.quant.codecs.codec import Codec, Encoded, Statistics


# A larger matrix is read by rows, as often as its codecs need them: 128 MiB as float32.
_WHOLE_WEIGHTS = 1 << 25


def write_variant(
    plan: VariantPlan,
    output: Path,
    statistics: Mapping[str, Statistics] | None = None,
    *,
    skip_harmful: bool = False,
    threads: int | None = None,
    progress: Progress = silent,
    resume: bool = False,
    crew: Crew | None = None,
) -> tuple[int, tuple[CodedReport, ...]]:
    """Code every planned matrix and write the variant; it appears under its name only when it is whole.

    Args:
        plan: what to write.
        output: the final name.
        statistics: GGUF name → what calibration knows of the matrix's inputs.
        skip_harmful: drop later stages of a chain that do not lower the error.
        threads: for decoding; as many as processors when None.
        progress: told the weights done.
        resume: go on after the tensors that an interrupted run of the same plan has left; the bytes are the same
            as without interruption.
        crew: who codes; None for this process.

    Returns:
        The file's length in bytes, and a report for each tensor.

    Raises:
        NumericError: a weight is not finite.
        CodecError: a matrix cannot be coded, or statistics are another model's.
        ResourceError: the disk is or becomes too small.
    """
    known = statistics or {}
    settled = settle_plan(plan, known)
    digest = _digest(settled, known, skip_harmful)
    start = settled.layout.data_start  # the header is written at the end
    kept = noted(output, digest, start) if resume else None
    known_outcomes = kept.more["outcomes"][: kept.tensors] if kept else []
    outcomes = [Outcome.from_json(fields) if fields else None for fields in known_outcomes]
    run = CodingRun(settled, known, skip_harmful, threads, outcomes)
    with journaled_output(output, digest, settled.total_bytes, kept, start) as (stream, journal):
        writer = VariantWriter(stream, settled.layout, run.done)
        with progress("code", sum(prod(tensor.rows.shape) for tensor in plan.tensors), " weights") as advance:
            advance(sum(prod(tensor.rows.shape) for tensor in plan.tensors[: len(outcomes)]))
            left = settled.tensors[len(outcomes) :]
            for tensor, coded in run.coded(left) if crew is None else crew_coded(run, left, crew):
                run.add(writer, tensor, coded)
                advance(prod(tensor.rows.shape))
                journal.note_now(len(run.outcomes), writer.length, run.as_json)
        length = writer.finish()
        plan.sources.check(CheckpointError)
        return length, run.reports


def _digest(plan: VariantPlan, statistics: Mapping[str, Statistics], skip_harmful: bool) -> str:
    """SHA-256 over all that decides the output's bytes: the draft, codecs, statistics, and the state of the sources."""
    digest = hashlib.sha256(plan.layout.header)
    digest.update(repr((skip_harmful, [tensor.target for tensor in plan.tensors])).encode())
    for tensor in plan.tensors:
        digest.update(statistics.get(tensor.name, NO_STATISTICS).identity)
    digest.update(plan.sources.identity())
    return digest.hexdigest()


@dataclass
class CodingRun:
    """Coding in progress.

    Attributes:
        plan: settled.
        statistics: GGUF name → what calibration knows of the matrix's inputs.
        skip_harmful: drop later stages that do not lower the error.
        threads: for decoding.
        outcomes: of the tensors that are written, in order; None for one that stays as it is.
    """

    plan: VariantPlan
    statistics: Mapping[str, Statistics]
    skip_harmful: bool
    threads: int | None
    outcomes: list[Outcome | None]
    _ahead: dict[str, Encoded] = field(default_factory=dict)

    @property
    def done(self) -> list[CodedTensor | TensorInfo]:
        """The tensors that are written, as they stand in the file."""
        return [entry(tensor, outcome) for tensor, outcome in zip(self.plan.tensors, self.outcomes, strict=False)]

    @property
    def as_json(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"outcomes": [None if outcome is None else outcome.as_json for outcome in self.outcomes]}

    @property
    def reports(self) -> tuple[CodedReport, ...]:
        """One for each tensor that is written."""
        written = zip(self.plan.tensors, self.outcomes, strict=False)
        return tuple(report(tensor, outcome) for tensor, outcome in written)

    def coded(self, tensors: Sequence[PlannedMatrix]) -> Iterator[tuple[PlannedMatrix, Coded | None]]:
        """Each tensor with what coding it gave; None for one that stays as it is."""
        for tensor in tensors:
            yield tensor, self.code(tensor)

    def code(self, tensor: PlannedMatrix) -> Coded | None:
        """Code one tensor; raises as `write_variant`."""
        if tensor.target is None:
            return None
        result = self._chained(tensor, tensor.target.codecs)
        native = choose_native(open_chain(result.stages), tensor.matrix_shape, result.squared_error)
        outcome = Outcome(native.name, result.error, result.reports, tuple(s.parameters for s in result.stages))
        return Coded(outcome, tuple(result.stages))

    def add(self, writer: VariantWriter, tensor: PlannedMatrix, coded: Coded | None) -> None:
        """Write one tensor."""
        if coded is None:
            assert isinstance(tensor.draft, TensorInfo)
            writer.add_plain(tensor.draft, tensor.read())
            self.outcomes.append(None)
            return
        filled = entry(tensor, coded.outcome)
        assert isinstance(filled, CodedTensor)
        writer.add_coded(filled, coded.stages)
        self.outcomes.append(coded.outcome)

    def together(self, tensor: PlannedMatrix) -> list[PlannedMatrix]:
        """Those that a matrix is coded with, in order, itself among them."""
        return self._groups.get(tensor.name, [tensor])

    def _chained(self, tensor: PlannedMatrix, codecs: tuple[Codec, ...]) -> ChainResult:
        return encode_chain(
            tensor if prod(tensor.matrix_shape) > _WHOLE_WEIGHTS else tensor.read(), codecs,
            self.statistics.get(tensor.name, NO_STATISTICS), skip_harmful=self.skip_harmful, threads=self.threads,
            first=self._first(tensor),
        )  # fmt: skip

    def _first(self, tensor: PlannedMatrix) -> Encoded | None:
        """The first stage of a matrix that is coded together with others; None for one that is coded alone."""
        codec = _together(tensor, self.statistics)
        if codec is None:
            return None
        if tensor.name not in self._ahead:
            group = self._groups[tensor.name]
            coded = codec.encode_together([member.read() for member in group])
            self._ahead = {member.name: one for member, one in zip(group, coded, strict=True)}
        return self._ahead.pop(tensor.name)

    def alone(self) -> CodingRun:
        """The run as another process takes it up: without what is done, and without Hessians."""
        known = {name: replace(own, hessian=None) for name, own in self.statistics.items()}
        return CodingRun(self.plan, known, self.skip_harmful, 1, [])

    def known_of(self, numbers: Sequence[int]) -> dict[str, Statistics]:
        """What is known of the inputs of some tensors, their Hessians in memory: another process has no such files."""
        names = (self.plan.tensors[number].name for number in numbers)
        known = {name: self.statistics[name] for name in names if name in self.statistics}
        return {name: replace(own, hessian=own.read_hessian()) for name, own in known.items()}

    def knowing(self, statistics: Mapping[str, Statistics]) -> CodingRun:
        """The run with more known of some tensors' inputs, and nothing coded ahead."""
        return CodingRun(self.plan, {**self.statistics, **statistics}, self.skip_harmful, self.threads, [])

    @cached_property
    def _groups(self) -> dict[str, list[PlannedMatrix]]:
        """Of every matrix, those that its first stage is coded with."""
        groups = _groups(self.plan, self.statistics)
        return {member.name: group for group in groups for member in group}


def _groups(plan: VariantPlan, statistics: Mapping[str, Statistics]) -> list[list[PlannedMatrix]]:
    """Matrices whose first stages are coded together, in file order; the same whatever is done already."""
    groups: list[list[PlannedMatrix]] = []
    codec: CodesTogether | None = None
    room = 0
    for tensor in plan.tensors:
        own = _together(tensor, statistics)
        if own is None:
            continue
        if own != codec or room <= 0:
            groups.append([])
            codec, room = own, own.weights_together
        groups[-1].append(tensor)
        room -= prod(tensor.rows.shape)
    return groups


def _together(tensor: PlannedMatrix, statistics: Mapping[str, Statistics]) -> CodesTogether | None:
    """The codec of the first stage where it codes several matrices together; it must know nothing of their inputs."""
    first: object = None if tensor.target is None else tensor.target.codecs[0]
    known = tensor.name in statistics
    return first if isinstance(first, CodesTogether) and first.weights_together and not known else None
