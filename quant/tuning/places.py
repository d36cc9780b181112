"""Where the rows of a file's tensors lie in a checkpoint's: what joins parameters to a model.

Values only: the export's rules say what they are (`export.tuned_places`), `student` follows them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Piece:
    """Some rows of a checkpoint's tensor: (rows of a file's tensor - shift) / factors.

    Attributes:
        tensor: name in the file.
        rows: int [n], in that tensor; elements of a vector.
        at: int [n], which rows of the checkpoint's tensor they are; columns where it is `transposed`.
        height: all rows of the file's tensor.
        factors: float32 [n]; None for one.
        shift: a constant that every weight was raised by.
    """

    tensor: str
    rows: NDArray[np.intp]
    at: NDArray[np.intp]
    height: int
    factors: NDArray[np.float32] | None = None
    shift: float = 0.0


@dataclass(frozen=True)
class Place:
    """All rows of a checkpoint's tensor.

    Attributes:
        name: in the checkpoint.
        pieces: that hold each row once.
        transposed: whether the file has its columns as rows.
        columns: int [columns]: column i of the file's tensors is column `columns[i]`; None where they are as they were.
    """

    name: str
    pieces: tuple[Piece, ...]
    transposed: bool = False
    columns: NDArray[np.intp] | None = None
