"""One matrix rounded into a stock ggml type so that its layer's outputs change least, given the layer's curvature.

Which tensor gets which type is left to `allocation`, the search itself to `search`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgepack.quant.codecs.ggml.codec import dequantize_rows, quantize_rows
from edgepack.quant.refine.blocks import FORMS, read_scales, write_rows
from edgepack.quant.refine.search import Geometry, heavy_first, search_rows

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
        loss: ½ Σ_r G_rr · e_r H e_rᵀ in nats, e = W - Ŵ.
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
) -> Refined:
    """Round `weight` to `kind`; the loss of no row is above the plain encoder's with H's diagonal as importance.

    Args:
        weight: float32 [out, in], `in` a multiple of the type's block; not modified.
        factor: of `inputs`.
        kind: any type that `quantize_rows` takes; those not in `REFINED_TYPES` come from the plain encoder.
        inputs: H = E[x xᵀ], float32 [in, in].
        row_costs: diagonal of G, float32 [out].
        threads: that share the rows; as many as there are cores where None. The bytes are the same for any number.

    Raises:
        CodecError: `in` is no multiple of the type's block.
    """
    plain = quantize_rows(kind, weight.numpy(), inputs.diagonal().numpy())
    losses = row_losses(weight, kind, plain, inputs)
    if kind in REFINED_TYPES:
        group = FORMS[kind].group
        geometry = Geometry.of(inputs, factor.damping, group, heavy_first(inputs.diagonal().numpy(), group))
        found = write_rows(kind, *search_rows(weight.numpy(), kind, read_scales(kind, plain), geometry, threads))
        found_losses = row_losses(weight, kind, found, inputs)
        better = found_losses < losses
        plain[better] = found[better]
        losses = np.where(better, found_losses, losses)
    return Refined(plain, 0.5 * float(losses @ row_costs.double().numpy()))


def row_losses(
    weight: torch.Tensor, kind: GGMLType, rows: NDArray[np.uint8], inputs: torch.Tensor
) -> NDArray[np.float64]:
    """e_r H e_rᵀ of every row, float64 [out]."""
    errors = weight - torch.from_numpy(dequantize_rows(kind, rows, *weight.shape))
    return ((errors @ inputs).double() * errors.double()).sum(1).numpy()
