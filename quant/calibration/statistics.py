"""Moments of the activations that enter a linear layer, accumulated in float64.

Values only: which layers are watched, and over what text, is left to `collect`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgepack.errors import NumericError
from edgepack.quant.calibration.hessian_files import STRIP, mirrored
from edgepack.quant.calibration.products import summed_products

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.quant.calibration.hessian_files import HessianFile


@dataclass(frozen=True)
class LinearStatistics:
    """What calibration keeps of the inputs x of one linear layer.

    Attributes:
        count: tokens seen.
        mean_abs: mean |x| per input channel, float32 [in].
        mean_square: mean x² per input channel, float32 [in]: the statistic of an importance matrix, diag(H).
        hessian: H = XᵀX / count, float32 [in, in], or None where it was not asked for, or lies in a file.
        stored: that file.
    """

    count: int
    mean_abs: NDArray[np.float32]
    mean_square: NDArray[np.float32]
    hessian: NDArray[np.float32] | None = None
    stored: HessianFile | None = None

    def read_hessian(self) -> NDArray[np.float32] | None:
        """H, read now where it lies in a file."""
        return self.hessian if self.stored is None else self.stored.read()

    def reordered(self, order: NDArray[np.intp]) -> LinearStatistics:
        """The statistics of inputs in another order, int [in]."""
        hessian = None if self.hessian is None else np.ascontiguousarray(self.hessian[np.ix_(order, order)])
        stored = None if self.stored is None else self.stored.reordered(order)
        return LinearStatistics(self.count, self.mean_abs[order], self.mean_square[order], hessian, stored)

    def divided(self, scales: NDArray[np.float32]) -> LinearStatistics:
        """The statistics of x / scales, channel by channel; `scales` float32 [in], positive."""
        known = self.read_hessian()
        hessian = None if known is None else known / scales / scales[:, None]
        return LinearStatistics(self.count, self.mean_abs / scales, self.mean_square / scales**2, hessian)


class MomentAccumulator:
    """Sums over tokens; products run in the activations' own type, sums in float64 on the CPU.

    Products of bfloat16 are float32.

    Args:
        with_hessian: whether to keep the sum of outer products [in, in] as well.
    """

    def __init__(self, with_hessian: bool) -> None:
        self.with_hessian = with_hessian
        self.count = 0
        self._abs: torch.Tensor | None = None
        self._square: torch.Tensor | None = None
        # Of the sum of outer products, strips of rows from the diagonal on: what is below is its mirror image.
        self._strips: list[torch.Tensor] = []

    def add(self, inputs: torch.Tensor) -> None:
        """Add activations [..., in]."""
        flat = inputs.detach().reshape(-1, inputs.shape[-1])
        if self._abs is None:
            self._start(flat.shape[-1])
        assert self._abs is not None
        assert self._square is not None
        self.count += flat.shape[0]
        self._abs += flat.abs().sum(0, dtype=torch.float32).cpu().double()
        self._square += flat.float().square().sum(0, dtype=torch.float32).cpu().double()
        for start, total in zip(range(0, flat.shape[1], STRIP), self._strips, strict=False):
            total += summed_products(flat[:, start : start + STRIP], flat[:, start:]).cpu()

    def take(self, sums: BatchSums) -> None:
        """Add what `batch_sums` gave of activations: the same, in the same order, as `add` of them."""
        if self._abs is None:
            self._start(len(sums.abs))
        assert self._abs is not None
        assert self._square is not None
        self.count += sums.count
        self._abs += sums.abs.double()
        self._square += sums.square.double()
        for total, strip in zip(self._strips, sums.strips, strict=True):
            total += strip

    def _start(self, columns: int) -> None:
        self._abs = torch.zeros(columns, dtype=torch.float64)
        self._square = torch.zeros(columns, dtype=torch.float64)
        if self.with_hessian:
            self._strips = [
                torch.zeros(min(STRIP, columns - start), columns - start, dtype=torch.float64)
                for start in range(0, columns, STRIP)
            ]

    def result(self, name: str) -> LinearStatistics:
        """The means.

        Args:
            name: of the layer, for messages.

        Raises:
            NumericError: an activation was NaN or infinite, or no token was seen.
        """
        if self._abs is None or self._square is None:
            raise NumericError(f"layer '{name}': saw no activations")
        if not torch.isfinite(self._square).all():
            channel = int(torch.nonzero(~torch.isfinite(self._square))[0])
            raise NumericError(f"layer '{name}': NaN or infinity in the activations of input channel {channel}")
        hessian = None
        if self._strips:
            hessian = mirrored(((strip / self.count).numpy() for strip in self._strips), len(self._square))
        return LinearStatistics(
            self.count, _single(self._abs / self.count), _single(self._square / self.count), hessian
        )


@dataclass(frozen=True)
class BatchSums:
    """What one batch of activations adds to a `MomentAccumulator`.

    Attributes:
        count: tokens.
        abs: sum of |x|, float32 [in].
        square: sum of x², float32 [in].
        strips: of XᵀX on and above the diagonal, 256 rows each, as `summed_products` gives them; empty without a
            Hessian.
    """

    count: int
    abs: torch.Tensor
    square: torch.Tensor
    strips: tuple[torch.Tensor, ...]

    @property
    def nbytes(self) -> int:
        """What it takes."""
        return sum(each.nbytes for each in (self.abs, self.square, *self.strips))


def batch_sums(inputs: torch.Tensor, *, with_hessian: bool) -> BatchSums:
    """Of activations [..., in], as `MomentAccumulator.add` takes them."""
    flat = inputs.detach().reshape(-1, inputs.shape[-1])
    starts = range(0, flat.shape[1] if with_hessian else 0, STRIP)
    return BatchSums(
        flat.shape[0],
        flat.abs().sum(0, dtype=torch.float32).cpu(),
        flat.float().square().sum(0, dtype=torch.float32).cpu(),
        tuple(summed_products(flat[:, start : start + STRIP], flat[:, start:]).cpu() for start in starts),
    )


def _single(values: torch.Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(values.numpy().astype(np.float32))
