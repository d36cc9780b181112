"""Chooses VPTQ's vector length and codebooks by a matrix's size, and normalises the matrix.

Coding with them is left to `vptq_encode`.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgepack.errors import CodecError
from edgepack.quant.codecs.torch_threads import one_thread
from edgepack.quant.codecs.vptq.codebook import kmeans, nearest
from edgepack.quant.codecs.vptq.stored import MAX_CENTROIDS, Geometry

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.quant.codecs.vptq.codec import VPTQ

# Excess bits over the Gaussian bound at 2 bits by vector length, as k-means gives them, and what each further bit
# adds; a residual stage costs about this much more. They only rank choices whose codebooks differ in size.
_EXCESS = {1: 0.46, 2: 0.40, 3: 0.365, 4: 0.34, 5: 0.32, 6: 0.30, 8: 0.28}
_EXCESS_PER_BIT = 0.09
_RESIDUAL_EXCESS = 0.06
_MAX_CENTROIDS = 4096
# A trial of a normalisation is only compared with others: fewer vectors and steps than a codebook gets.
_TRIAL_VECTORS = 1 << 13
_TRIAL_STEPS, _TRIAL_MOVING = 12, 9


def choose_geometry(shape: tuple[int, int], codec: VPTQ) -> Geometry:
    """The vector length and codebooks with the least expected excess, codebooks and padding counted.

    Args:
        shape: (rows, columns).
        codec: its nominal bits, and a fixed vector length where it has one.
    """
    weights = shape[0] * shape[1]
    trials = []
    for vector, residual in product([codec.vector] if codec.vector else sorted(_EXCESS), (False, True)):
        total = codec.bits * vector
        main = total - total // 2 if residual else total
        unwanted = codec.residual == ("no" if residual else "yes") or (residual and total < 2)
        if unwanted or (1 << main) > max(_MAX_CENTROIDS, 1 << codec.bits):
            continue
        second = 1 << (total - main) if residual else 0
        padding = codec.bits * (-shape[0] % vector) / shape[0]
        side = 16 * vector * ((1 << main) + second) / weights + padding
        excess = _EXCESS.get(vector, 0.28) * (1 + _EXCESS_PER_BIT * (codec.bits - 2)) + (
            _RESIDUAL_EXCESS if residual else 0
        )
        trials.append((excess + side, vector, Geometry(vector, 1 << main, second)))
    if not trials:
        return Geometry(codec.vector or 1, 1 << min(codec.bits * max(codec.vector, 1), 12))
    return min(trials, key=lambda trial: trial[:2])[2]


def normalise(
    weight: NDArray[np.float32], kind: str
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """(W - bias) / scale with both as float16 will hold them; does not modify `weight`.

    Args:
        weight: float32 [rows, columns].
        kind: `none`, `row` (root mean square of a row) or `column` (deviation and mean of a column).

    Returns:
        the normalised matrix; the scale [rows, 1], [1, columns] or [1, 1]; the bias [1, columns] or [1, 1].
    """
    bias = np.zeros((1, 1), dtype=np.float32)
    if kind == "none":
        return weight, np.ones((1, 1), dtype=np.float32), bias
    if kind == "column":
        bias = weight.mean(axis=0, keepdims=True)
    spread = np.sqrt(((weight - bias).astype(np.float64) ** 2).mean(axis=1 if kind == "row" else 0, keepdims=True))
    scale = np.minimum(spread, 6e4).astype(np.float16).astype(np.float32)
    scale[scale == 0] = 1
    return (weight - bias) / scale, scale, bias


def plan_geometry(shape: tuple[int, int], codec: VPTQ) -> Geometry:
    """All that the length of a coded matrix depends on.

    Raises:
        CodecError: the codec's normalisation is not settled.
    """
    if not codec.settled:
        raise CodecError("codec 'vptq': lengths are known once its normalisation is settled")
    geometry = choose_geometry(shape, codec)
    outliers = int(codec.outliers * shape[1]) if shape[1] > 1 else 0
    centroids = min(2 * geometry.centroids, MAX_CENTROIDS) if outliers else 2
    return replace(geometry, outliers=outliers, outlier_centroids=centroids, normalise=codec.normalise)


def settled_normalisation(
    weight: NDArray[np.float32], shape: tuple[int, int], codec: VPTQ, importance: NDArray[np.float64] | None
) -> str:
    """The normalisation whose trial has the least excess, its scales' bits counted.

    Args:
        weight: finite float32 [n, columns]: some of the rows, or all.
        shape: (rows, columns) of the whole matrix.
        codec: its bits and vector length.
        importance: [columns], weighs squared errors; None for all equal.
    """
    weights = np.ones(weight.shape[1]) if importance is None else importance
    geometry = choose_geometry(shape, codec)
    costs = []
    with one_thread():
        for kind, rate in (("none", 0.0), ("row", 16 / shape[1]), ("column", 32 / shape[0])):
            costs.append((rate + 0.5 * np.log2(_trial_error(weight, geometry, weights, kind)), kind))
    return min(costs)[1]


def _trial_error(weight: NDArray[np.float32], geometry: Geometry, importance: NDArray[np.float64], kind: str) -> float:
    """Weighted squared error of plain k-means on some of the vectors."""
    scaled, scale, _bias = normalise(weight, kind)
    spread = np.broadcast_to(scale.astype(np.float64) ** 2 * importance, weight.shape)
    groups = len(weight) // geometry.vector
    if not groups:
        return 1.0
    shape = (groups, geometry.vector, weight.shape[1])
    used = groups * geometry.vector
    vectors = torch.from_numpy(scaled[:used].reshape(shape).transpose(0, 2, 1).reshape(-1, geometry.vector))
    weights = torch.from_numpy(spread[:used].reshape(shape).mean(axis=1).reshape(-1).astype(np.float32))
    step = max(1, len(vectors) // _TRIAL_VECTORS)
    vectors, weights = vectors[::step].contiguous(), weights[::step].contiguous()
    count = min(geometry.centroids, max(2, len(vectors) // 16))
    centroids = kmeans(vectors, weights, count, _TRIAL_STEPS, _TRIAL_MOVING)
    error = (vectors - centroids[nearest(vectors, centroids)]).square().sum(1) * weights
    return max(float(error.sum()), 1e-300)
