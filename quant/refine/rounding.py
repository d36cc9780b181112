"""One matrix rounded into a stock ggml type so that its layer's outputs change least, given the layer's curvature.

Which tensor gets which type is left to `allocation`, the search itself to `search`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgepack.errors import NumericError
from edgepack.quant.codecs.ggml.codec import dequantize_rows, quantize_rows
from edgepack.quant.codecs.torch_threads import one_thread
from edgepack.quant.refine.blocks import FORMS, read_quants, read_scales, write_rows
from edgepack.quant.refine.rates import row_bits, row_rates
from edgepack.quant.refine.search import Geometry, heavy_first, search_rows
from edgepack.quant.refine.two_sided import round_two_sided
from edgepack.quant.row_feedback import RowFeedback

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.gguf.types import GGMLType
    from edgepack.quant.feedback import FeedbackFactor

REFINED_TYPES = frozenset(FORMS)


@dataclass(frozen=True)
class Refined:
    """A matrix in a ggml type.

    Attributes:
        rows: uint8 [out, bytes of a row].
        loss: ½ tr(G E H Eᵀ) in nats, E = W - Ŵ; with G's diagonal alone, ½ Σ_r G_rr · e_r H e_rᵀ.
    """

    rows: NDArray[np.uint8]
    loss: float


def refine_matrix(
    weight: torch.Tensor,
    factor: FeedbackFactor,
    kind: GGMLType,
    *,
    inputs: torch.Tensor,
    row_costs: torch.Tensor,
    threads: int | None = None,
    rate: float = 0.0,
    row_feedback: RowFeedback | None = None,
) -> Refined:
    """Round `weight` to `kind`; never a greater loss than the plain encoder's with H's diagonal as importance.

    With a rate, loss + rate · bits is made small, bits being what an archive is expected to take.

    Args:
        weight: float32 [out, in], `in` a multiple of the type's block; not modified.
        factor: of `inputs`; its damping is used.
        kind: any type that `quantize_rows` takes; those not in `REFINED_TYPES` come from the plain encoder.
        inputs: H = E[x xᵀ], float32 [in, in].
        row_costs: diagonal of G, float32 [out]: no row's loss is greater than the encoder's. Or G, float32
            [out, out], for which rows make good each other's errors.
        rate: nats a token that a bit in the archive is worth; 0 where none counts.
        threads: that share the rows; as many as there are cores where None. The bytes are the same for any number.
        row_feedback: the factor of `row_costs` where that is G; made here where None.

    Raises:
        GGUFError: `in` is no multiple of the type's block.
        NumericError: NaN or infinity in `weight`.
    """
    if not torch.isfinite(weight).all():
        raise NumericError("a matrix to refine: NaN or infinity in its weights")
    with one_thread():  # sums of torch depend on how many threads share them
        if row_costs.ndim == 2 and kind in REFINED_TYPES:
            row_feedback = row_feedback or RowFeedback.of(row_costs)
        threads = threads or os.cpu_count() or 1
        return _refined(weight, factor.damping, kind, inputs, row_costs, row_feedback, threads, rate)


def _refined(
    weight: torch.Tensor,
    damping: float,
    kind: GGMLType,
    inputs: torch.Tensor,
    row_costs: torch.Tensor,
    row_feedback: RowFeedback | None,
    threads: int,
    rate: float,
) -> Refined:
    squares = inputs.diagonal().numpy()
    plain = quantize_rows(kind, weight.numpy(), squares)
    if kind not in REFINED_TYPES:
        return Refined(plain, _loss(weight, kind, plain, inputs, row_costs))
    group = FORMS[kind].group
    geometry = Geometry.of(inputs, damping, group, heavy_first(squares, group))
    if rate:
        return _rated(weight, kind, plain, geometry, inputs, row_costs, row_feedback, threads, rate)
    candidates = [_best_rows(weight, kind, plain, geometry, inputs, threads)]
    if row_feedback is not None:
        candidates += [plain, round_two_sided(weight, kind, geometry, row_feedback, squares, threads)]
    losses = [_loss(weight, kind, rows, inputs, row_costs) for rows in candidates]
    least = min(range(len(losses)), key=losses.__getitem__)
    return Refined(candidates[least], losses[least])


def _rated(
    weight: torch.Tensor,
    kind: GGMLType,
    plain: NDArray[np.uint8],
    geometry: Geometry,
    inputs: torch.Tensor,
    row_costs: torch.Tensor,
    row_feedback: RowFeedback | None,
    threads: int,
    rate: float,
) -> Refined:
    """The least of loss + rate · bits: rows by themselves or, given G, together."""
    rates = row_rates(rate, (row_costs.diagonal() if row_costs.ndim == 2 else row_costs).numpy())
    scales, quants = search_rows(weight.numpy(), kind, read_scales(kind, plain), geometry, threads, rates=rates)
    candidates = [(write_rows(kind, scales, quants), quants)]
    if row_feedback is not None:
        squares = inputs.diagonal().numpy()
        rows = round_two_sided(weight, kind, geometry, row_feedback, squares, threads, rate)
        candidates.append((rows, read_quants(kind, rows, weight.shape[1])))
    losses = [_loss(weight, kind, rows, inputs, row_costs) for rows, _quants in candidates]
    costs = [loss + rate * row_bits(kind, each[1]).sum() for loss, each in zip(losses, candidates, strict=True)]
    least = min(range(len(costs)), key=costs.__getitem__)
    return Refined(candidates[least][0], losses[least])


def _best_rows(
    weight: torch.Tensor,
    kind: GGMLType,
    plain: NDArray[np.uint8],
    geometry: Geometry,
    inputs: torch.Tensor,
    threads: int,
) -> NDArray[np.uint8]:
    """Of every row the refined one, or the plain one where its loss is less."""
    found = write_rows(kind, *search_rows(weight.numpy(), kind, read_scales(kind, plain), geometry, threads))
    better = row_losses(weight, kind, found, inputs) < row_losses(weight, kind, plain, inputs)
    return np.where(better[:, None], found, plain)


def _loss(
    weight: torch.Tensor, kind: GGMLType, rows: NDArray[np.uint8], inputs: torch.Tensor, costs: torch.Tensor
) -> float:
    """In nats, for G's diagonal or G."""
    if costs.ndim == 1:
        return 0.5 * float(row_losses(weight, kind, rows, inputs) @ costs.double().numpy())
    errors = weight - torch.from_numpy(dequantize_rows(kind, rows, *weight.shape))
    return 0.5 * float(((costs @ errors).double() * (errors @ inputs).double()).sum())


def row_losses(
    weight: torch.Tensor, kind: GGMLType, rows: NDArray[np.uint8], inputs: torch.Tensor
) -> NDArray[np.float64]:
    """e_r H e_rᵀ of every row, float64 [out]."""
    errors = weight - torch.from_numpy(dequantize_rows(kind, rows, *weight.shape))
    return np.asarray(((errors @ inputs).double() * errors.double()).sum(1).numpy())
