#!/usr/bin/env python3
"""What refinement gives and costs where bits count: loss and coded bits of a matrix at growing rates, type by type.

    .venv/bin/python tools/bench_rates.py [--types Q5_1,Q4_K] [--rows 256] [--figure refine-rates]

The matrix is Gaussian, 512 columns, rows of different spreads (e^.4z) and of different curvatures (e^z), under the H of
correlated inputs. A rate of 1 is the one at which a coarser step is worth its error, 2 ln 2 times the loss a weight.
Loss is that over refinement's at no rate; bits are those of the archive's own coder, for the
blocks as one chunk.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import torch
from figure_file import run_with_figure

from edgepack.gguf.types import GGMLType
from edgepack.packaging.coding.chunks import encode
from edgepack.packaging.coding.layouts import grid_layout_of, layout_of
from edgepack.packaging.coding.streams import StreamEncoder
from edgepack.packaging.segments import Segment
from edgepack.quant.feedback import feedback_factor
from edgepack.quant.refine.rounding import refine_matrix

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KINDS = "Q5_1,Q5_0,Q6_K,Q5_K,Q4_K,IQ4_XS"
RATES = (0.0, 0.03, 0.3, 1.0, 3.0)
COLUMNS = 512


def matrix(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights [rows, columns], H and the diagonal of G."""
    torch.manual_seed(0)
    inputs = torch.randn(3 * COLUMNS, COLUMNS) @ torch.randn(COLUMNS, COLUMNS) * torch.exp(torch.randn(COLUMNS))
    weight = 0.02 * torch.randn(rows, COLUMNS) * torch.exp(0.4 * torch.randn(rows, 1))
    curvature = inputs.T @ inputs / len(inputs)
    return weight, curvature / curvature.diagonal().mean(), torch.exp(torch.randn(rows))


def coded_bits(kind: GGMLType, rows: NDArray[np.uint8], *, on_grid: bool) -> float:
    """Bits a weight of an archive's chunk of these rows."""
    raw = rows.tobytes()
    layout = grid_layout_of(kind) if on_grid else layout_of(kind)
    segment = Segment("t", layout, 0, len(raw), len(raw), COLUMNS if on_grid else 0)
    return 8 * len(encode(raw, segment, StreamEncoder()).record) / (len(rows) * COLUMNS)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", default=KINDS)
    parser.add_argument("--rows", type=int, default=256)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    weight, inputs, costs = matrix(arguments.rows)
    print(f"| rate | {' | '.join(f'{name}: loss, bits' for name in arguments.types.split(','))} |")
    print(f"|---|{'---|' * len(arguments.types.split(','))}")
    kinds = [GGMLType[name] for name in arguments.types.split(",")]
    factor, first = feedback_factor(inputs), dict[GGMLType, float]()
    for rate in RATES:
        cells = []
        for kind in kinds:
            worth = rate * 1.386 * first.get(kind, 0.0) / weight.numel()
            found = refine_matrix(weight, factor, kind, inputs=inputs, row_costs=costs, threads=1, rate=worth)
            first.setdefault(kind, found.loss)
            bits = coded_bits(kind, found.rows, on_grid=rate > 0)
            cells.append(f"{found.loss / first[kind]:.3f}, {bits:.3f}")
        print(f"| {rate:g} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    run_with_figure(main)
