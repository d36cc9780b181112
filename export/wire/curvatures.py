"""The curvature of GGUF matrices, looked up by the checkpoint's rows that they are made of; of experts one by one.

Measuring and keeping it is `quant.calibration`'s, what is done with it left to `plan`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from edgepack.export.wire.origins import Origins
    from edgepack.gguf.types import TensorInfo
    from edgepack.model import TensorSpec
    from edgepack.quant.calibration.curvature_store import CurvatureStore


@dataclass(frozen=True)
class _Part:
    """Rows of one matrix of the store: its name, and the row of each."""

    name: str
    rows: NDArray[np.intp]


@dataclass(frozen=True)
class MatrixCurvatures:
    """Curvature by GGUF tensor.

    Attributes:
        store: by the checkpoint's names; expert E of a tensor that holds all of them is `NAME[E]`.
        origins: of the GGUF's rows.
        specs: of the checkpoint's tensors.
    """

    store: CurvatureStore
    origins: Origins
    specs: Mapping[str, TensorSpec]

    def known(self, info: TensorInfo) -> bool:
        """Whether every row has a curvature."""
        return all(part.name in self.store for part in self._parts(info))

    def outputs(self, info: TensorInfo) -> torch.Tensor:
        """Diagonal of G, float32 [rows]; of experts one behind the other.

        A row that was multiplied on its way into the file counts as much less as its errors are larger there.
        """
        found = [self.store.outputs(part.name).numpy()[part.rows] for part in self._parts(info)]
        origin = self.origins.of(info.name)
        if len(info.shape) == 3 or len(found) == 1:
            joined = np.concatenate(found)
        else:
            joined = np.empty(info.rows, np.float32)
            for number, values in enumerate(found):
                joined[origin.parts == number] = values
        return torch.from_numpy(joined if origin.factors is None else joined / np.square(origin.factors))

    def joint(self, info: TensorInfo) -> torch.Tensor | None:
        """G, float32 [rows, rows], of a tensor whose rows are all of one matrix for which it was kept; else None."""
        parts, origin = self._parts(info), self.origins.of(info.name)
        if len(info.shape) > 2 or len(parts) != 1 or origin.factors is not None:
            return None
        found, rows = self.store.joint(parts[0].name), parts[0].rows
        return None if found is None else found[rows][:, rows].contiguous()

    def inputs(self, info: TensorInfo, expert: int = 0) -> torch.Tensor:
        """H of what a matrix, or one expert of a stack, reads: float32 [in, in]."""
        found, columns = self.store.inputs(self._parts(info)[expert].name), self.origins.of(info.name).columns
        return found if columns is None else found[columns][:, columns]

    def inputs_of(self, info: TensorInfo, expert: int = 0) -> str:
        """What tells these inputs from others."""
        return self.store.inputs_of(self._parts(info)[expert].name)

    def squares(self, info: TensorInfo) -> NDArray[np.float64]:
        """H's diagonal, float64 [in]."""
        found, columns = self.store.squares(self._parts(info)[0].name), self.origins.of(info.name).columns
        return found if columns is None else found[columns]

    def _parts(self, info: TensorInfo) -> list[_Part]:
        """The matrices of the store that a tensor's rows are of: of experts one each, in order."""
        origin = self.origins.of(info.name)
        if len(info.shape) < 3:
            numbered = enumerate(origin.names)
            return [_Part(name, origin.rows[origin.parts == number]) for number, name in numbered]
        found, per = [], info.shape[1]
        for start in range(0, info.rows, per):
            name, rows = origin.names[origin.parts[start]], origin.rows[start : start + per]
            shape = self.specs[name].shape
            if len(shape) == 3:
                name, rows = f"{name}[{rows[0] // shape[1]}]", rows % shape[1]
            found.append(_Part(name, rows))
        return found
