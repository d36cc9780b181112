"""What a codec is: a weight matrix in, named flat arrays out, and rows of the matrix back.

Values, protocols and the checks that all codecs share. How arrays lie in a file is left to
`edgepack.gguf.variant`, which codec a tensor gets to `edgepack.quant.codecs.targets`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from edgepack.errors import CodecError, NumericError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

Parameter = bool | int | float | str

# No finite number of float64 is written with more characters.
LONGEST_NUMBER = -2.2250738585072014e-308

# The component types that a GGUF can hold; unsigned values lie in the signed type of the same width.
COMPONENT_TYPES = (np.uint8, np.uint16, np.int32, np.float16, np.float32)


# Weights of one chunk, 4 MiB as float32: some thousand blocks for each call, and few MiB a thread.
CHUNK_WEIGHTS = 1 << 20


@dataclass(frozen=True)
class Component:
    """Type and exact length of one array that a codec stores.

    Attributes:
        dtype: one of `COMPONENT_TYPES`.
        count: items in the array, which is always one-dimensional.
    """

    dtype: type[np.generic]
    count: int

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return self.count * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Encoded:
    """A coded matrix.

    Attributes:
        codec: name of the codec, such as `seedlm`.
        version: of that codec's bytes.
        shape: (rows, columns) of the matrix; tensors with more dimensions are flattened to rows.
        parameters: what the decoder needs beside the arrays.
        components: suffix → one-dimensional array.
    """

    codec: str
    version: int
    shape: tuple[int, int]
    parameters: Mapping[str, Parameter]
    components: Mapping[str, NDArray[Any]]

    @property
    def nbytes(self) -> int:
        """Bytes of all components."""
        return sum(array.nbytes for array in self.components.values())

    @property
    def bits_per_weight(self) -> float:
        """Stored bits for each weight, side data included."""
        return 8 * self.nbytes / (self.shape[0] * self.shape[1])


@runtime_checkable
class KeptHessian(Protocol):
    """A matrix's mean outer product that lies elsewhere than in memory."""

    def read(self) -> NDArray[np.float32]:
        """The matrix, float32 [columns, columns]."""
        ...

    @property
    def identity(self) -> bytes:
        """What two of them share only if they read alike."""
        ...


def _bytes(array: NDArray[Any] | None) -> bytes:
    return b"none" if array is None else np.ascontiguousarray(array).tobytes()


@dataclass(frozen=True)
class Statistics:
    """What calibration knows of the inputs of a matrix; codecs work without it, and better with it.

    Attributes:
        importance: mean squared activation of each column, float [columns], or None.
        hessian: mean outer product of the activations, float [columns, columns], or where it is read from; or None.
    """

    importance: NDArray[Any] | None = None
    hessian: NDArray[Any] | KeptHessian | None = None

    def read_hessian(self) -> NDArray[Any] | None:
        """The mean outer product, float [columns, columns]: read now where it is not in memory."""
        return self.hessian.read() if isinstance(self.hessian, KeptHessian) else self.hessian

    @property
    def identity(self) -> bytes:
        """What two of them share only if codecs learn the same from both."""
        parts = (self.importance, self.hessian)
        return b"".join(part.identity if isinstance(part, KeptHessian) else _bytes(part) for part in parts)

    def column_weights(self, columns: int) -> NDArray[np.float64] | None:
        """Non-negative weight of each column with mean 1, or None where nothing is known.

        Raises:
            CodecError: the statistics are of another width.
            NumericError: they are negative, or not finite, or all zero.
        """
        known = self.importance if self.importance is not None else self.read_hessian()
        if known is None:
            return None
        diagonal = np.asarray(known if known.ndim == 1 else np.diagonal(known), dtype=np.float64)
        if diagonal.shape != (columns,):
            raise CodecError(f"statistics: expected {columns} columns, got {diagonal.shape[0]}")
        mean = float(diagonal.mean())
        if not np.isfinite(mean) or mean <= 0 or diagonal.min() < 0:
            raise NumericError("statistics: expected finite column importances, some positive and none negative")
        return diagonal / mean


NO_STATISTICS = Statistics()


class Decoder(Protocol):
    """A coded matrix that is ready to give rows; calls from several threads are safe."""

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `start` (included) to `stop` (not included), float32 [stop - start, columns].

        Raises:
            CodecError: a stored value is impossible, such as an index beyond the codebook.
        """
        ...


class Codec(Protocol):
    """One method of coding, with its defaults as the fields of a frozen dataclass.

    `encode` reads the fields; `layout` and `decoder` read only what was stored.
    """

    name: ClassVar[str]
    version: ClassVar[int]

    def encode(self, weight: NDArray[np.float32], statistics: Statistics = NO_STATISTICS) -> Encoded:
        """Code a finite float32 matrix [rows, columns]; does not modify it."""
        ...

    def draft(self, shape: tuple[int, int]) -> dict[str, Parameter]:
        """Parameters of a matrix of `shape` before its weights are seen: the layout is exact, no value is longer.

        What depends on weights stands as `LONGEST_NUMBER` or its like, so that lengths of files can be planned.

        Raises:
            CodecError: the codec is still to be settled (`Settling`).
        """
        ...

    def layout(self, shape: tuple[int, int], parameters: Mapping[str, Parameter]) -> dict[str, Component]:
        """Every component of a matrix of `shape`; raises CodecError when a parameter is impossible."""
        ...

    def decoder(self, encoded: Encoded) -> Decoder:
        """A decoder of `encoded`, whose components have been checked with `check_components`."""
        ...


@runtime_checkable
class Settling(Protocol):
    """A codec that makes a choice by the weights on which the lengths of its components depend."""

    @property
    def settled(self) -> bool:
        """Whether that choice is made."""
        ...

    def settle(self, source: RowSource, statistics: Statistics = NO_STATISTICS) -> Codec:
        """The codec with the choice that it makes for a finite matrix; of a large one it may read a sample."""
        ...


@runtime_checkable
class SuitsSize(Protocol):
    """A codec whose way of coding depends on how many weights of a model it codes."""

    def suited_to(self, weights: int) -> tuple[Codec, str]:
        """The codec for so many weights, and a line for people where they get another result than a small model's."""
        ...


def row_chunks(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """(first row, row after the last) of each chunk; a chunk is at least one row."""
    step = max(1, CHUNK_WEIGHTS // columns)
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


class RowSource(Protocol):
    """A matrix that is read by rows, so that it never has to be in memory as a whole."""

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        ...

    def read_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `start` (included) to `stop` (not included): float32."""
        ...


@dataclass(frozen=True)
class WholeMatrix:
    """A matrix in memory as a `RowSource`."""

    array: NDArray[np.float32]

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """As `RowSource.matrix_shape`."""
        return self.array.shape[0], self.array.shape[1]

    def read_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """As `RowSource.read_rows`; a view."""
        return self.array[start:stop]


@runtime_checkable
class CodesByPieces(Protocol):
    """A codec that codes a matrix piece by piece."""

    def encode_pieces(self, source: RowSource, statistics: Statistics = NO_STATISTICS) -> Encoded:
        """As `Codec.encode` of the whole matrix, to the same bytes, with memory for the result and some pieces."""
        ...


@runtime_checkable
class CodesTogether(Protocol):
    """A codec that codes several matrices together in less time than one by one."""

    @property
    def weights_together(self) -> int:
        """Weights of matrices that are worth coding together; 0 where nothing is gained."""
        ...

    def encode_together(self, weights: Sequence[NDArray[np.float32]]) -> list[Encoded]:
        """As `Codec.encode` without statistics, for several matrices."""
        ...


def check_weight(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """The matrix as contiguous float32.

    Raises:
        CodecError: not two-dimensional, or empty.
        NumericError: NaN or infinity.
    """
    if weight.ndim != 2 or weight.size == 0:
        raise CodecError(f"codecs code matrices with at least one weight, got shape {weight.shape}")
    array = np.ascontiguousarray(weight, dtype=np.float32)
    if not np.isfinite(array).all():
        raise NumericError(f"matrix of shape {weight.shape}: expected finite weights, got NaN or infinity")
    return array


def check_components(codec: Codec, encoded: Encoded) -> None:
    """Hold the components against the codec's layout; no array is read.

    Raises:
        CodecError: version, parameters, or a component's presence, type or length are wrong.
    """
    if not 1 <= encoded.version <= codec.version:
        raise CodecError(
            f"made by a newer edgepack: codec '{codec.name}' version {encoded.version}, known up to {codec.version}"
        )
    layout = codec.layout(encoded.shape, encoded.parameters)
    for name in encoded.components.keys() - layout.keys():
        raise CodecError(f"codec '{codec.name}': unknown component '{name}'")
    for name, component in layout.items():
        array = encoded.components.get(name)
        if array is None:
            raise CodecError(f"codec '{codec.name}': component '{name}' is missing")
        if array.dtype != component.dtype or array.shape != (component.count,):
            expected = f"{component.count} of {np.dtype(component.dtype).name}"
            raise CodecError(
                f"codec '{codec.name}': component '{name}': expected {expected}, got {array.size} of {array.dtype.name}"
            )


@dataclass(frozen=True)
class ErrorSum:
    """Squared error and squared norm, added up over rows.

    Attributes:
        error: sum of (W - Ŵ)².
        norm: sum of W².
    """

    error: float = field(default=0.0)
    norm: float = field(default=0.0)

    def plus(self, weight: NDArray[np.float32], decoded: NDArray[np.float32]) -> ErrorSum:
        """The sum with these rows added."""
        difference = (weight - decoded).ravel()
        flat = weight.ravel()
        return ErrorSum(
            self.error + float(np.dot(difference, difference)),
            self.norm + float(np.dot(flat, flat)),
        )

    @property
    def relative(self) -> float:
        """‖W - Ŵ‖² / ‖W‖²; 0 when both are zero, infinity when only the norm is."""
        if self.norm == 0:
            return 0.0 if self.error == 0 else float("inf")
        return self.error / self.norm
