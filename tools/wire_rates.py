"""Rates of the wire's parts: the sweep beside a matrix product, curvature beside the model's own passes.

Tables for `bench_wire`; each row is the median of turns in which both took their place.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from edgepack.export.checkpoint import open_checkpoint
from edgepack.quant.calibration.blocks import whole_model
from edgepack.quant.calibration.curvature import measure
from edgepack.quant.feedback import feedback_factor
from edgepack.quant.wire.factor import SweepFactor
from edgepack.quant.wire.grid import Lattice, half
from edgepack.quant.wire.lanes import Lanes, TrellisRounding
from edgepack.quant.wire.rates import RateModel
from edgepack.quant.wire.sweep import sweep
from edgepack.trellis import TrellisCode

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS = 8192  # of a swept matrix: four tiles of sixteen lanes
TURNS = 5
LIMITS = {576: 60, 1536: 80, 4096: 150}  # ns a weight and try, eight states
LEAST_SHARE = 0.5  # of the rate of a matrix product with the same multiply-adds, at width 4,096


def seconds_of(work: Callable[[], object]) -> float:
    """Processor time of one call."""
    started = time.process_time()
    work()
    return time.process_time() - started


def turns(ours: Callable[[], object], peer: Callable[[], object], count: int = TURNS) -> tuple[float, float, float]:
    """Median seconds of both, taken in turns, and the median of the peer's over ours."""
    ours(), peer()
    pairs = [(seconds_of(ours), seconds_of(peer)) for _ in range(count)]
    mine, theirs = zip(*pairs, strict=True)
    return statistics.median(mine), statistics.median(theirs), statistics.median(b / a for a, b in pairs)


def sweep_of(width: int, states: int) -> Callable[[], object]:
    """A sweep of normal weights [ROWS, width] at about four bits, inputs of a random covariance."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2 * width, width, generator=generator)
    factor = SweepFactor.of(feedback_factor(inputs.T @ inputs / len(inputs)))
    weights, ones = torch.randn(ROWS, width, generator=generator), torch.ones(width, dtype=torch.int32)
    factors = torch.ones(ROWS, width // 32, dtype=torch.int32)
    lattice = Lattice(half(torch.full((ROWS,), 0.15)), factors, ones, ones * 127, 256)
    paths = None
    if states:
        code, rates = TrellisCode(states, 128), RateModel.of(weights, factor, lattice)
        paths = TrellisRounding(code, Lanes.cut([ROWS], 128, rates.below()), torch.ones(ROWS), rates)
    return lambda: sweep(weights, factor, lattice, paths=paths)


def print_sweeps(states: list[int]) -> None:
    """The table of the sweep, on one thread."""
    torch.set_num_threads(1)
    print("| width | states | ns a weight and try | at most | matrix product, ns | share of its rate | at least |")
    print("|" + "---|" * 7)
    for width, limit in LIMITS.items():
        product = torch.randn(ROWS, width), torch.randn(width, width // 2)  # width / 2 multiply-adds a weight
        for count in (8, *(other for other in states if other != 8)):
            mine, peer, share = turns(sweep_of(width, count), lambda pair=product: pair[0] @ pair[1])
            ns, of_peer = (1e9 * each / ROWS / width for each in (mine, peer))
            bounds = (limit if count == 8 else "", LEAST_SHARE if count == 8 and width == 4096 else "")
            cells = (f"{width:,}", count or "none", f"{ns:.1f}", bounds[0], f"{of_peer:.1f}", f"{share:.2f}", bounds[1])
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def print_curvature(model: Path, name: str, sequences: int, length: int) -> None:
    """Curvature beside a forward and a backward pass of the whole model over the same tokens, on one thread."""
    torch.set_num_threads(1)
    checkpoint = open_checkpoint(model)
    tokens = torch.randint(0, 4000, (sequences, length), generator=torch.Generator().manual_seed(0))

    def curvature() -> None:
        with tempfile.TemporaryDirectory() as folder:
            for _part in measure(checkpoint, tokens.numpy(), Path(folder)):
                pass

    whole = whole_model(checkpoint).requires_grad_(True)

    def passes() -> None:
        for batch in tokens.split(4):
            whole(input_ids=batch, labels=batch).loss.backward()

    mine, peer, share = turns(curvature, passes, 3)
    print("| model | tokens | curvature | its own forward and backward | share of their rate |\n" + "|" + "---|" * 5)
    print(f"| {name} | {tokens.numel():,} | {mine:.1f} s | {peer:.1f} s | {share:.2f} |", flush=True)
