"""Interleaved range asymmetric numeral systems: symbols with a table each, to lane states and 16-bit words and back.

Sources: Duda, arXiv 1311.2540 (rANS); Giesen, arXiv 1402.3392 (interleaving). The loops are the kernel `grid_coder`'s;
which classes a matrix has and how a stream begins is `grid_coder`'s knowledge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import ArchiveError
from edgepack.kernels.native import library, pointer, structure
from edgepack.packaging.coding.grid_tables import first_tables
from edgepack.packaging.coding.trellis_symbols import trellis_fields

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.trellis import TrellisCode

LOW = 1 << 16  # states lie in [LOW, 2^32)
LEAST_LANES, MOST_LANES = 4, 256  # each is a chain of dependent steps: one alone would decode at a third of the rate
MOST_REACH = 128
ASIDE = 128  # added to the class of a row that stands aside


@dataclass(frozen=True)
class LaneCoder:
    """How the symbols of a matrix are coded.

    Attributes:
        rows: uint8 [rows], row classes; with a code, `ASIDE` more where a row stands aside.
        columns: uint8 [columns], column classes.
        lanes: 1 to `MOST_LANES`.
        shape: of the tables' family.
        reach: the greatest magnitude of an index, 1 to `MOST_REACH`.
        learns: whether tables learn from what was coded.
        code: the trellis whose paths the integers follow, or None.
    """

    rows: NDArray[np.uint8]
    columns: NDArray[np.uint8]
    lanes: int
    shape: int
    reach: int
    learns: bool
    code: TrellisCode | None

    def __post_init__(self) -> None:
        if not 0 < self.lanes <= MOST_LANES or not 0 < self.reach <= MOST_REACH:
            raise ValueError(f"expected up to {MOST_LANES} lanes, reach {MOST_REACH}, got {self.lanes}, {self.reach}")
        if not self.rows.size or not self.columns.size:
            raise ValueError(f"expected rows and columns, got {self.rows.size} and {self.columns.size}")

    @property
    def shape_of_matrix(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.rows.size, self.columns.size

    def _arrays(self) -> dict[str, NDArray[Any]]:
        """What the kernel reads, by the names of its fields."""
        return {
            "first": first_tables(self.shape, self.reach, 1 if self.code is None else 2),
            "row_classes": np.ascontiguousarray(self.rows),
            "column_classes": np.ascontiguousarray(self.columns),
        }

    def _grid(self, arrays: dict[str, NDArray[Any]]) -> Any:
        kinds = {name: "const uint16_t *" if name == "first" else "const uint8_t *" for name in arrays}
        return structure(
            "edgepack_grid *", rows=self.rows.size, columns=self.columns.size, lanes=self.lanes, reach=self.reach,
            learns=self.learns, **trellis_fields(self.code),
            **{name: pointer(array, kinds[name]) for name, array in arrays.items()},
        )  # fmt: skip

    def encode(
        self, indices: NDArray[np.int16], chosen: NDArray[np.uint8] | None
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
        """Lane states and words.

        Args:
            indices: [rows, columns], within ±reach.
            chosen: quantisers [rows, columns]; with a code only.

        Raises:
            ValueError: other shapes, or indices beyond the reach.
        """
        used = np.zeros(1, np.uint8) if chosen is None or self.code is None else np.ascontiguousarray(chosen)
        if indices.shape != self.shape_of_matrix or (self.code is not None and used.shape != indices.shape):
            raise ValueError(f"expected indices {self.shape_of_matrix}, got {indices.shape} and {used.shape}")
        if int(indices.max()) > self.reach or int(indices.min()) < -self.reach:
            raise ValueError(f"expected indices within {self.reach}, got {indices.min()} to {indices.max()}")
        arrays, values = self._arrays(), np.ascontiguousarray(indices, np.int16)
        states, words = np.empty(self.lanes, np.uint32), np.empty(indices.size, np.uint16)
        count = library().edgepack_grid_encode(
            self._grid(arrays), pointer(values, "const int16_t *"), pointer(used, "const uint8_t *"),
            pointer(states, "uint32_t *"), pointer(words, "uint16_t *"),
        )  # fmt: skip
        if count < 0:
            raise MemoryError
        return states, words[words.size - count :]

    def decode(
        self, multiples: NDArray[np.uint8], zero: int, states: NDArray[np.uint32], words: NDArray[np.uint16], where: str
    ) -> NDArray[np.uint8]:
        """The bytes uint8 [rows, columns]: integer · multiple of its column + zero, modulo 256.

        Args:
            multiples: uint8 [columns].
            zero: the symbol of the integer 0.
            states: uint32 [lanes].
            words: all of them.
            where: begins the text of errors.

        Raises:
            ArchiveError: words end too early or are left over, or the states do not end where they began.
            ValueError: another number of multiples or states.
        """
        if multiples.size != self.columns.size or states.size != self.lanes:
            raise ValueError(f"expected {self.columns.size} multiples, {self.lanes} states")
        arrays, out = self._arrays(), np.empty(self.shape_of_matrix, np.uint8)
        factors, begun, fed = map(np.ascontiguousarray, (multiples, states, words))
        problem = library().edgepack_grid_decode(
            self._grid(arrays), pointer(factors, "const uint8_t *"), zero, pointer(begun, "const uint32_t *"),
            pointer(fed, "const uint16_t *"), fed.size, pointer(out, "uint8_t *"),
        )  # fmt: skip
        if problem < 0:
            raise MemoryError
        if problem:
            reason = f"its {words.size} words end too early" if problem == 1 else "does not end where it began"
            raise ArchiveError(f"{where}: {reason}: damaged or hostile")
        return out
