"""A matrix rounded under a full curvature of its outputs: rows that err together make good each other's errors.

With G = E[g gᵀ] of the outputs' gradients, what is made small is tr(G E H Eᵀ). Rows are rounded in blocks; of each
block the errors are made good by the rows not yet rounded, as feedback does along columns (GPTQ's update, from the
left). Rows of one block are searched by `search`, each for itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from edgepack.quant.codecs.ggml.codec import dequantize_rows, quantize_rows
from edgepack.quant.refine.blocks import read_scales, write_rows
from edgepack.quant.refine.rates import row_rates
from edgepack.quant.refine.search import search_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.gguf.types import GGMLType
    from edgepack.quant.refine.search import Geometry
    from edgepack.quant.row_feedback import RowFeedback

# Rows that are rounded side by side: what the kernel takes in its lanes.
BLOCK = 16


def round_two_sided(
    weight: torch.Tensor,
    kind: GGMLType,
    geometry: Geometry,
    feedback: RowFeedback,
    importance: NDArray[np.float32],
    threads: int | None = None,
    rate: float = 0.0,
) -> NDArray[np.uint8]:
    """Rows of `kind`, uint8 [out, bytes of a row].

    Args:
        weight: float32 [out, in]; not modified.
        kind: of `FORMS`.
        geometry: of the columns.
        feedback: of the rows.
        importance: E[x²] [in], for the scales that the search starts from.
        threads: as `search_rows` takes them.
        rate: nats a token that a bit is worth; a row's errors cost what the rows behind it cannot make good.
    """
    work, upper = weight[feedback.order].clone(), feedback.upper
    rates = row_rates(rate, upper.diagonal().square().reciprocal().numpy()) if rate else None
    found = np.empty((len(work), kind.row_bytes(work.shape[1])), np.uint8)
    for start in range(0, len(work), BLOCK):
        stop = min(start + BLOCK, len(work))
        rows = work[start:stop].numpy()
        scales = read_scales(kind, quantize_rows(kind, rows, importance))
        worth = None if rates is None else rates[start:stop]
        found[start:stop] = write_rows(kind, *search_rows(rows, kind, scales, geometry, threads, rates=worth))
        errors = work[start:stop] - torch.from_numpy(dequantize_rows(kind, found[start:stop], *rows.shape))
        moved = torch.linalg.solve_triangular(upper[start:stop, start:stop], upper[start:stop, stop:], upper=True)
        work[stop:] -= moved.T @ errors
    back = np.empty_like(found)
    back[feedback.order.numpy()] = found
    return back
