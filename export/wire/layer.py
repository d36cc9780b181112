"""Scales that a wire export folds out of matrices, layer by layer: norms and rows take what makes inputs even.

Which scales of a graph cancel is `wire_folding`'s knowledge; how the matrices are then rounded is left to `wire`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgepack.quant.wire.grid import ladder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from edgepack.export.mapped import MappedModel
    from edgepack.export.wire.folding import InputGroup

    Shape = Callable[[InputGroup, NDArray[np.float64]], NDArray[np.float64]]

_EVEN_FLOOR = 0.01  # of the mean square, added to each input's


@dataclass
class FoldedLayer:
    """What is known and changed of one layer before its matrices are rounded.

    Attributes:
        columns: GGUF name → what its columns are divided by, float64 [in].
        rows: GGUF name → what its rows are multiplied with, float64 [out].
        vectors: GGUF name → norms and biases with the folds in them.
    """

    columns: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    rows: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    vectors: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def unfolded(self, name: str, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """All rows of matrix `name` without its folds."""
        if name in self.columns:
            rows = (rows * self.columns[name]).astype(np.float32)
        if name in self.rows:
            rows = (rows / self.rows[name][:, None]).astype(np.float32)
        return rows


class LayerFolder:
    """Decides every fold of a layer, before any of its matrices is rounded.

    Args:
        model: only read.
        squares: mean squares of what an input group reads, float64 [in].
        folds: whether to fold at all.
    """

    def __init__(self, model: MappedModel, squares: Callable[[InputGroup], NDArray[np.float64]], folds: bool) -> None:
        self._model, self._squares, self._folds = model, squares, folds

    def fold(self, groups: Sequence[InputGroup], shape: Shape | None = None) -> FoldedLayer:
        """The folds of a layer.

        Args:
            groups: its input groups.
            shape: gives the scales of a group from those that would make its inputs even; their square root where None.
        """
        layer = FoldedLayer()
        for group in groups:
            if not self._folds or (group.norm is None and group.producer is None):
                continue
            even = evening(self._squares(group))
            # All of it would be right if mean squares were those of typical tokens; they are those of a few huge ones,
            # and weights pay for what activations gain: half is close to what a search finds (docs/floor.md).
            even = np.sqrt(even) if shape is None else shape(group, even)
            if group.norm is not None:
                self._fold_into_norm(group, even, layer)
            elif group.producer is not None:
                self._fold_into_rows(group, even, layer)
        return layer

    def _fold_into_norm(self, group: InputGroup, wanted: NDArray[np.float64], layer: FoldedLayer) -> None:
        name = f"{group.norm}.weight"
        norm = self._vector(name).astype(np.float64)
        live = norm != 0
        # The folded norm has few significant bits, so that it costs little; the fold is what it then says exactly.
        folded = np.where(live, np.copysign(_on_ladder(np.abs(norm) * wanted), norm), 0.0).astype(np.float32)
        scale = np.where(live, folded / np.where(live, norm, 1.0), 1.0)
        layer.vectors[name] = folded
        bias = f"{group.norm}.bias"
        if bias in self._model.tensors:
            layer.vectors[bias] = (self._vector(bias) * scale).astype(np.float32)
        layer.columns |= dict.fromkeys(group.members, scale)

    def _fold_into_rows(self, group: InputGroup, wanted: NDArray[np.float64], layer: FoldedLayer) -> None:
        assert group.producer is not None
        scale = wanted
        if group.width:
            shared = np.log(wanted).reshape(-1, group.repeats, group.width).mean(1)
            layer.rows[group.producer] = np.exp(shared).reshape(-1)
            scale = np.exp(np.repeat(shared[:, None], group.repeats, axis=1)).reshape(-1)
        else:
            layer.rows[group.producer] = scale
        bias = group.producer.replace(".weight", ".bias")
        if bias in self._model.tensors:
            layer.vectors[bias] = (self._vector(bias) * layer.rows[group.producer]).astype(np.float32)
        layer.columns |= dict.fromkeys(group.members, scale)

    def _vector(self, name: str) -> NDArray[np.float32]:
        return np.asarray(self._model.tensors[name].read(0, 1)[0])


def evening(mean_squares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scales that would make all inputs equally large, geometric mean 1; [in] to [in].

    llama.cpp rounds activations to 8 bits a block of 32 or 256, by the largest in it. How much of the unevenness is
    taken is `fold_choice`'s; half where nothing chooses. What the columns' steps then still lack to be proportional
    to U_kk, small integer multiples give.
    """
    rms = np.sqrt(mean_squares + _EVEN_FLOOR * mean_squares.mean() + 1e-30)
    return np.asarray(np.exp(np.log(rms).mean()) / rms)


def _on_ladder(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(ladder(torch.from_numpy(np.maximum(values, 1e-30))).numpy())
