"""A feedback factor as sweeps take it: coefficients of twelve bits, packed by panels of columns, kept on disk.

How a Hessian is factorised is left to `quant.feedback`, how columns are swept to `sweep`.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.quant.feedback import FeedbackFactor

PANEL = 32  # columns whose coefficients lie together: SUB of kernels/wire_sweep.c
_DROPPED = 12  # of a float32's 24 significant bits: products of two such numbers are exact in float32
_SMALLEST = 2.0**-60


def twelve_bits(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The nearest numbers of twelve significant bits, ties to even; below 2^-60 zero. As the kernel rounds errors."""
    bits = np.ascontiguousarray(values, np.float32).view(np.int32)
    rounded = (bits + ((1 << (_DROPPED - 1)) - 1 + ((bits >> _DROPPED) & 1))) & ~((1 << _DROPPED) - 1)
    found = rounded.astype(np.int32).view(np.float32)
    return np.where(np.abs(found) < _SMALLEST, np.float32(0), found)


@dataclass(frozen=True)
class SweepFactor:
    """How errors are fed back, with H⁻¹ = UᵀU.

    Attributes:
        packed: float32; panel p holds -U[j, k] for j < 32 · (p + 1) and k = 32 · p …, zeros where j >= k.
        diagonal: U[j, j], float32 [in].
        noise: mean square of what feedback adds to a column's values over that of earlier errors, float32 [in].
    """

    packed: NDArray[np.float32]
    diagonal: NDArray[np.float32]
    noise: NDArray[np.float32]

    @property
    def columns(self) -> int:
        """Of the matrices."""
        return len(self.diagonal)

    @classmethod
    def of(cls, factor: FeedbackFactor, folds: NDArray[np.float64] | None = None) -> SweepFactor:
        """From U [in, in] of unfolded inputs.

        Args:
            factor: as `quant.feedback` gives it.
            folds: what columns are divided by [in]: inputs are multiplied with them, U's columns divided by them.
        """
        upper = factor.upper.cpu().numpy()
        if folds is not None:
            upper = upper / folds.astype(np.float32)
        diagonal = np.ascontiguousarray(upper.diagonal())
        noise = np.maximum(np.square(upper).sum(0) / np.square(diagonal) - 1, 0)
        return cls(_packed(upper), diagonal, noise.astype(np.float32))

    def folded(self, folds: NDArray[np.float64]) -> SweepFactor:
        """Of inputs multiplied with `folds` [in]: U's columns divided by them, again of twelve bits."""
        packed = np.empty_like(self.packed)
        divisors = np.ones(-(-self.columns // PANEL) * PANEL, np.float32)
        divisors[: self.columns] = folds
        for panel in range(-(-self.columns // PANEL)):
            start, rows = _place(panel)
            place = slice(start, start + rows * PANEL)
            packed[place] = twelve_bits(
                self.packed[place].reshape(rows, PANEL) / divisors[panel * PANEL : rows]
            ).reshape(-1)
        return SweepFactor(packed, (self.diagonal / divisors[: self.columns]).astype(np.float32), self.noise)

    def dense(self) -> torch.Tensor:
        """U [in, in] of twelve bits off the diagonal, for sweeps in torch."""
        panels = -(-self.columns // PANEL)
        upper = np.zeros((panels * PANEL, panels * PANEL), np.float32)
        for panel in range(panels):
            start, rows = _place(panel)
            upper[:rows, panel * PANEL : rows] = self.packed[start : start + rows * PANEL].reshape(rows, PANEL)
        upper = -upper[: self.columns, : self.columns]
        np.fill_diagonal(upper, self.diagonal)
        return torch.from_numpy(np.ascontiguousarray(upper))

    def save(self, folder: Path) -> None:
        """Write it as three files, each whole or not at all; the last to appear is `diagonal.npy`."""
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"partial-{secrets.token_hex(4)}.npy"  # other processes may write the same
        for name in ("packed", "noise", "diagonal"):
            np.save(partial, getattr(self, name))
            partial.replace(folder / f"{name}.npy")

    @classmethod
    def load(cls, folder: Path) -> SweepFactor | None:
        """What `save` wrote, its coefficients read from disk as they are needed; None where it is not whole."""
        if not (folder / "diagonal.npy").is_file():
            return None
        packed = np.load(folder / "packed.npy", mmap_mode="r")
        return cls(packed, np.load(folder / "diagonal.npy"), np.load(folder / "noise.npy"))


def _place(panel: int) -> tuple[int, int]:
    """Where a panel starts, and its rows."""
    return panel * (panel + 1) // 2 * PANEL * PANEL, (panel + 1) * PANEL


def _packed(upper: NDArray[np.float32]) -> NDArray[np.float32]:
    columns = len(upper)
    panels = -(-columns // PANEL)
    packed = np.zeros(_place(panels)[0], np.float32)
    for panel in range(panels):
        start, rows = _place(panel)
        real, first = min(rows, columns), panel * PANEL
        above = np.triu(upper[:real, first:real], 1 - first)
        packed[start : start + rows * PANEL].reshape(rows, PANEL)[:real, : real - first] = twelve_bits(-above)
    return packed
