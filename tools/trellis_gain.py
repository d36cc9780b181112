#!/usr/bin/env python3
"""What a trellis gains over a plain grid, and what lanes of finite length lose, on Gaussian weights.

    .venv/bin/python tools/trellis_gain.py [--states 4,8,64] [--rows 32,64,128] [--rates 1,2,3,4]

Excess is R + ½·log2(error): bits above the Gaussian rate-distortion bound, R being the entropy of the indices given
their quantiser. Also printed: the mean squared error in steps of the union grid, which `quant.wire.rates` states.
"""

from __future__ import annotations

import argparse
import math

import torch

from edgepack.packaging.coding.trellis_symbols import as_indices
from edgepack.quant.feedback import feedback_factor
from edgepack.quant.wire.factor import SweepFactor
from edgepack.quant.wire.grid import Lattice
from edgepack.quant.wire.lanes import Lanes, TrellisRounding
from edgepack.quant.wire.rates import RateModel
from edgepack.quant.wire.sweep import sweep
from edgepack.trellis import TrellisCode

WEIGHTS = 1 << 20


def entropy(symbols: torch.Tensor) -> float:
    """Bits a symbol, order 0."""
    shares = symbols.unique(return_counts=True)[1].double() / symbols.numel()
    return float(-(shares * shares.log2()).sum())


def round_all(weights: torch.Tensor, step: float, code: TrellisCode | None) -> torch.Tensor:
    """Integers of weights [rows, columns] without feedback."""
    rows, columns = weights.shape
    ones = torch.ones(columns, dtype=torch.int32)
    lattice = Lattice(torch.full((rows,), step), ones.expand(rows, -1), ones, ones * 4000, 1)
    paths, factor = None, SweepFactor.of(feedback_factor(torch.eye(columns), 0.0))
    if code is not None:
        lanes = Lanes.cut([rows], code.rows, torch.zeros(rows, dtype=torch.bool))
        rates = RateModel.of(weights, factor, lattice)
        paths = TrellisRounding(code, lanes, torch.ones(rows), rates)
    return torch.from_numpy(sweep(weights, factor, lattice, paths=paths).quants).int()


def measure(weights: torch.Tensor, step: float, code: TrellisCode | None) -> tuple[float, float, float]:
    """Rate in bits, excess in bits, squared error in steps."""
    integers = round_all(weights, step, code)
    error = float((weights - integers * step).square().mean())
    if code is None:
        rate = entropy(integers)
    else:
        found = as_indices(integers.numpy().astype("int64"), torch.ones(weights.shape[1]).long().numpy(), code)
        assert found is not None, "the integers do not follow the code"
        indices, quantisers = torch.from_numpy(found.indices), torch.from_numpy(found.quantisers)
        parts = [indices[quantisers == choice] for choice in (0, 1)]
        rate = sum(part.numel() * entropy(part) for part in parts) / indices.numel()
    return rate, rate + 0.5 * math.log2(error), error / step**2


def main() -> None:
    """Parse options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--states", default="4,8,64")
    parser.add_argument("--rows", default="32,64,128")
    parser.add_argument("--rates", default="1,2,3,4", help="of the plain grid, about")
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    columns = ("step of the plain grid", "states", "rows of a path", "bits", "excess", "error in steps")
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for rate in map(float, options.rates.split(",")):
        step = math.sqrt(2 * math.pi * math.e) / 2**rate
        choices = [(1, 0), *((int(s), int(r)) for s in options.states.split(",") for r in options.rows.split(","))]
        for states, rows in choices:
            height = max(256, rows)
            weights = torch.randn(height, WEIGHTS // height, generator=generator)
            code = TrellisCode(states, rows) if states > 1 else None
            bits, excess, error = measure(weights, step * (0.5625 if code else 1), code)
            shown = (f"{step:.3f}", states, rows or "", f"{bits:.3f}", f"{excess:.4f}", f"{error:.4f}")
            print("| " + " | ".join(map(str, shown)) + " |", flush=True)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
