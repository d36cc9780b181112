"""Chains of codecs: each codes what the ones before it left over, and decoding adds them up.

Every stage reports its own bits and the error after it, so that anyone sees what a chain really gives.
What codes well is left to the codecs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import CodecError
from edgepack.processors import default_threads
from edgepack.quant.codecs.codec import NO_STATISTICS, ErrorSum, Settling, WholeMatrix, row_chunks
from edgepack.quant.codecs.decode import decode, map_rows
from edgepack.quant.codecs.registry import open_decoder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from edgepack.quant.codecs.codec import Codec, CodesByPieces, Decoder, Encoded, RowSource, Statistics


@dataclass(frozen=True)
class StageReport:
    """What one stage gave.

    Attributes:
        codec: its name.
        bits_per_weight: of this stage alone, side data included.
        error: relative squared error of the sum of all kept stages up to this one.
        error_before: the same without this stage; 1 before the first.
        kept: whether the stage is in the result.
    """

    codec: str
    bits_per_weight: float
    error: float
    error_before: float
    kept: bool

    @property
    def harmful(self) -> bool:
        """Whether the stage made the error larger, or cost bits without making it smaller."""
        return self.error >= self.error_before > 0 or self.error > self.error_before


@dataclass(frozen=True)
class ChainResult:
    """A coded matrix.

    Attributes:
        stages: at least one.
        reports: one for each stage that was tried, in order.
        squared_error: ‖W - Ŵ‖².
    """

    stages: tuple[Encoded, ...]
    reports: tuple[StageReport, ...]
    squared_error: float

    @property
    def decoded(self) -> NDArray[np.float32]:
        """The sum of the stages, float32 [rows, columns]; for callers that have the memory."""
        return open_chain(self.stages).rows(0, self.stages[0].shape[0])

    @property
    def error(self) -> float:
        """Relative squared error of the whole."""
        return [report.error for report in self.reports if report.kept][-1]

    @property
    def nbytes(self) -> int:
        """Bytes of all stages."""
        return sum(stage.nbytes for stage in self.stages)


def settle(
    codecs: Sequence[Codec], weight: Callable[[], NDArray[np.float32]], statistics: Statistics = NO_STATISTICS
) -> tuple[Codec, ...]:
    """The codecs with every choice made that lengths depend on; later stages choose by the whole matrix too.

    Args:
        codecs: of a chain.
        weight: gives the finite float32 matrix [rows, columns]; called only where there is a choice.
        statistics: of the matrix's inputs.
    """
    return tuple(
        codec.settle(weight(), statistics) if isinstance(codec, Settling) and not codec.settled else codec
        for codec in codecs
    )


def encode_chain(
    weight: NDArray[np.float32],
    codecs: Sequence[Codec],
    statistics: Statistics = NO_STATISTICS,
    *,
    skip_harmful: bool = False,
    threads: int | None = None,
    first: Encoded | None = None,
) -> ChainResult:
    """Code a matrix with the first codec, what is left with the next, and so on; does not modify it.

    Args:
        weight: finite float32 [rows, columns].
        codecs: at least one.
        statistics: of the matrix's inputs; the same for every stage.
        skip_harmful: leave out later stages that do not lower the error.
        threads: for decoding.
        first: what the first codec made of the matrix, where that is known already.

    Raises:
        CodecError: no codec, or the matrix cannot be coded.
        NumericError: NaN or infinity in the matrix.
    """
    if not codecs:
        raise CodecError("a chain needs at least one codec")
    left = weight  # what the kept stages have not coded; a copy from the second stage on
    stages: list[Encoded] = []
    reports: list[StageReport] = []
    norm = _squares(weight)
    before, squared_error = (1.0 if norm else 0.0), norm
    settled = settle(codecs, lambda: weight, statistics)
    for number, codec in enumerate(settled):
        encoded = first if first is not None and not stages else codec.encode(left, statistics)
        lost = _lost(encoded, WholeMatrix(left), threads)
        error = ErrorSum(lost, norm).relative
        report = StageReport(codec.name, encoded.bits_per_weight, error, before, kept=True)
        if skip_harmful and stages and report.harmful:
            reports.append(StageReport(codec.name, encoded.bits_per_weight, error, before, kept=False))
            continue
        stages.append(encoded)
        reports.append(report)
        before, squared_error = error, lost
        if number + 1 < len(settled):
            left = left - decode(encoded, threads)
    return ChainResult(tuple(stages), tuple(reports), squared_error)


def encode_pieces(source: RowSource, codec: CodesByPieces, threads: int | None = None) -> ChainResult:
    """As `encode_chain` with one codec that codes by pieces; the matrix is never whole in memory.

    Raises:
        NumericError: NaN or infinity in the matrix.
    """
    encoded = codec.encode_pieces(source)
    norm = sum(_squares(source.read_rows(start, stop)) for start, stop in row_chunks(*source.matrix_shape))
    lost = _lost(encoded, source, threads)
    error = ErrorSum(lost, norm).relative
    report = StageReport(encoded.codec, encoded.bits_per_weight, error, 1.0 if norm else 0.0, kept=True)
    return ChainResult((encoded,), (report,), lost)


def _squares(rows: NDArray[np.float32]) -> float:
    """Sum of squares, by pieces in double precision."""
    return sum(float(np.square(rows[a:b], dtype=np.float64).sum()) for a, b in row_chunks(*rows.shape))


def _lost(encoded: Encoded, source: RowSource, threads: int | None) -> float:
    """Squared error of a stage on what it was to code, by pieces of rows: the decoded matrix is never whole."""

    def squares(start: int, stop: int, rows: NDArray[np.float32]) -> float:
        return _squares(source.read_rows(start, stop) - rows)

    return sum(map_rows(open_decoder(encoded), encoded.shape, squares, threads or default_threads()))


@dataclass(frozen=True)
class ChainDecoder:
    """The sum of several decoders."""

    parts: tuple[Decoder, ...]

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """As `Decoder.rows`."""
        total = self.parts[0].rows(start, stop)
        for part in self.parts[1:]:
            total = total + part.rows(start, stop)
        return total


def open_chain(stages: Sequence[Encoded]) -> Decoder:
    """A decoder of the sum of stages; raises CodecError as `open_decoder`."""
    if not stages:
        raise CodecError("a chain needs at least one codec")
    parts = tuple(open_decoder(stage) for stage in stages)
    return parts[0] if len(parts) == 1 else ChainDecoder(parts)
