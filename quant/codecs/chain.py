"""Chains of codecs: each codes what the ones before it left over, and decoding adds them up.

Every stage reports its own bits and the error after it, so that anyone sees what a chain really gives.
What codes well is left to the codecs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import CodecError
from edgepack.processors import default_threads
from edgepack.quant.codecs.codec import (
    NO_STATISTICS,
    CodesByPieces,
    ErrorSum,
    Settling,
    SuitsSize,
    WholeMatrix,
    row_chunks,
)
from edgepack.quant.codecs.decode import decode, map_rows
from edgepack.quant.codecs.pieces import LeftOver, whole_matrix
from edgepack.quant.codecs.registry import open_decoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgepack.quant.codecs.codec import Codec, Decoder, Encoded, RowSource, Statistics


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


def suited_to(codec: Codec, weights: int) -> tuple[Codec, str]:
    """As `SuitsSize.suited_to`; a codec that has nothing to choose by size stays as it is."""
    return codec.suited_to(weights) if isinstance(codec, SuitsSize) else (codec, "")


def settle(codecs: Sequence[Codec], source: RowSource, statistics: Statistics = NO_STATISTICS) -> tuple[Codec, ...]:
    """The codecs with every choice made that lengths depend on; later stages choose by the whole matrix too.

    Args:
        codecs: of a chain.
        source: the finite matrix [rows, columns]; read only where there is a choice.
        statistics: of the matrix's inputs.
    """
    return tuple(
        codec.settle(source, statistics) if isinstance(codec, Settling) and not codec.settled else codec
        for codec in codecs
    )


def encode_chain(
    weight: NDArray[np.float32] | RowSource,
    codecs: Sequence[Codec],
    statistics: Statistics = NO_STATISTICS,
    *,
    skip_harmful: bool = False,
    threads: int | None = None,
    first: Encoded | None = None,
) -> ChainResult:
    """Code a matrix with the first codec, what is left with the next, and so on; does not modify it.

    Args:
        weight: finite float32 [rows, columns]; of one that is read by rows, codecs that code by pieces hold pieces.
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
    source: RowSource = WholeMatrix(weight) if isinstance(weight, np.ndarray) else weight
    left = source  # what the kept stages have not coded
    stages: list[Encoded] = []
    reports: list[StageReport] = []
    norm = _squares(source)
    before, squared_error = (1.0 if norm else 0.0), norm
    settled = settle(codecs, source, statistics)
    for number, codec in enumerate(settled, 1):
        encoded = first if first is not None and not stages else _encoded(codec, left, statistics)
        lost = _lost(encoded, left, threads)
        error = ErrorSum(lost, norm).relative
        report = StageReport(codec.name, encoded.bits_per_weight, error, before, kept=True)
        if skip_harmful and stages and report.harmful:
            reports.append(replace(report, kept=False))
            continue
        stages.append(encoded)
        reports.append(report)
        before, squared_error = error, lost
        left = _without(left, encoded, threads) if number < len(settled) else left
    return ChainResult(tuple(stages), tuple(reports), squared_error)


def _without(left: RowSource, encoded: Encoded, threads: int | None) -> RowSource:
    """What a stage has left: in memory where its matrix is, else decoded again at every reading."""
    if isinstance(left, WholeMatrix):
        return WholeMatrix(left.array - decode(encoded, threads))
    return LeftOver(left, open_decoder(encoded))


def _encoded(codec: Codec, source: RowSource, statistics: Statistics) -> Encoded:
    if isinstance(codec, CodesByPieces):
        return codec.encode_pieces(source, statistics)
    return codec.encode(whole_matrix(source), statistics)


def _squares(source: RowSource) -> float:
    """Sum of squares, by pieces in double precision."""
    return sum(_sum_of_squares(source.read_rows(*span)) for span in row_chunks(*source.matrix_shape))


def _sum_of_squares(rows: NDArray[np.float32]) -> float:
    return float(np.square(rows, dtype=np.float64).sum())


def _lost(encoded: Encoded, source: RowSource, threads: int | None) -> float:
    """Squared error of a stage on what it was to code, by pieces of rows: the decoded matrix is never whole."""

    def squares(start: int, stop: int, rows: NDArray[np.float32]) -> float:
        return _sum_of_squares(source.read_rows(start, stop) - rows)

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
