"""How strongly a group's inputs are evened by folding, and its weights: by what both cost on a sample of rows.

Even inputs lose least to llama.cpp's 8-bit activations, but make columns of weights uneven, of which the largest in a
block decides the host's step. `layer` folds, `grid` chooses the grid that is then used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgepack.gguf.types import GGMLType

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from edgepack.quant.codecs.ggml.host_grids import Host

# Exponents of (columns' root mean squares, evening scales). Between even inputs and columns that share a block's step
# as (w̄^p U²)^(1 / (p + 2)): what costs least where a block's step is the p-norm of its columns over the host's reach.
STRENGTHS = ((0.0, 1.0), (0.0, 0.5), (0.5, 0.5), (2 / 3, 1 / 3))
COARSE = 3  # of STRENGTHS: what hosts of few integers take most often
FINE = 1
_CREST = 4.0  # square of the largest of a block of activations over the largest mean square in it
_INTEGERS = 127  # of llama.cpp's activations, Q8_0 and Q8_K


@dataclass(frozen=True)
class FoldSample:
    """Rows of an input group before it is folded.

    Attributes:
        weights: float32 [n, in].
        relative: their relative steps, float64 [n].
        even: scales that make the inputs even, float64 [in].
        squares: mean squares of the inputs, float64 [in].
    """

    weights: torch.Tensor
    relative: torch.Tensor
    even: NDArray[np.float64]
    squares: NDArray[np.float64]

    def scales(self, strength: int) -> NDArray[np.float64]:
        """What columns are divided by, geometric mean 1."""
        of_weights, of_inputs = STRENGTHS[strength]
        counts = self.relative.square().reciprocal()
        columns = (self.weights.double().square() * counts[:, None]).mean(0).sqrt()
        columns = columns.clamp_min(float(columns.mean()) * 1e-3 + 1e-30).numpy()
        logs = of_weights * np.log(columns) + of_inputs * np.log(self.even)
        return np.asarray(np.exp(logs - logs.mean()))

    def activations(self, strength: int, host: Host, scale: float) -> float:
        """What rounding activations costs a weight, where weights on the wanted steps of a plain grid cost 1.

        Args:
            strength: number of one of `STRENGTHS`.
            host: whose blocks share a step of the activations.
            scale: the one scalar.
        """
        if host.kind is GGMLType.F16:
            return 0.0
        scales, block = self.scales(strength), host.kind.block_size
        largest = np.sqrt(self.squares) * scales
        largest = np.maximum.reduceat(largest, np.arange(0, len(largest), block))
        noise = _CREST * np.square(np.repeat(largest, block)[: len(scales)]) / (12 * _INTEGERS**2)
        rows = (self.weights.double().square() * torch.from_numpy(noise / np.square(scales))).mean(1)
        return float((12 * rows / self.relative.square()).mean()) / scale**2


def choose_strength(
    sample: FoldSample, host: Host, scale: float, cost_of: Callable[[NDArray[np.float64]], float]
) -> int:
    """The strength with which weights and activations together cost least; number of one of `STRENGTHS`.

    Args:
        sample: of the group.
        host: its container.
        scale: the one scalar.
        cost_of: what weights cost with columns divided by some scales.
    """
    costs = [cost_of(sample.scales(one)) + sample.activations(one, host, scale) for one in range(len(STRENGTHS))]
    return int(np.argmin(costs))
