"""SeedLM's searches by speed: weights a second, beside the machine's own rate of float32 matrix products.

Part of `bench_codecs`, which compares codecs by what they give.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgepack.quant.codecs.codec import Statistics
from edgepack.quant.codecs.decode import decode
from edgepack.quant.codecs.seedlm.cells import MAX_LOG2_CELLS, make_cells
from edgepack.quant.codecs.seedlm.codec import SeedLM

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from edgepack.quant.codecs.codec import Encoded


@dataclass(frozen=True)
class Searched:
    """One search over all matrices: its processor seconds and its squared error."""

    seconds: float
    error: float


def matrix_product_rate() -> float:
    """Multiplications and additions a second of one core in a large float32 product in torch."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    a = torch.randn(2048, 2048)
    a @ a
    started = time.process_time()
    for _ in range(3):
        a @ a
    rate = 3 * 2 * 2048**3 / (time.process_time() - started)
    torch.set_num_threads(threads)
    return rate


def _search(weights: Sequence[NDArray[np.float32]], code: Callable[[], Sequence[Encoded]]) -> Searched:
    started = time.process_time()
    encoded = code()
    seconds = time.process_time() - started
    pairs = zip(weights, encoded, strict=True)
    return Searched(seconds, sum(float(((weight - decode(one, threads=1)) ** 2).sum()) for weight, one in pairs))


def print_search_rates(title: str, weights: Sequence[NDArray[np.float32]]) -> None:
    """Both searches interleaved with the matrix-product rate: rate, search, rate, search, rate.

    Args:
        title: of the matrices.
        weights: what is coded, all matrices together by the pruned search.
    """
    for block, coefficients in ((8, 3), (12, 4)):
        _print_rates(f"{title}: SeedLM ({block}, {coefficients})", weights, block, coefficients)


def _print_rates(title: str, weights: Sequence[NDArray[np.float32]], block: int, coefficients: int) -> None:
    exhaustive, pruned = SeedLM(block, coefficients), SeedLM(block, coefficients, search="pruned")
    started = time.process_time()
    make_cells(block, coefficients, exhaustive.register_bits, "cpu", MAX_LOG2_CELLS)
    tables = time.process_time() - started
    pruned.encode_together(weights)  # smaller tables, for few blocks, are made once a process too
    rates = [matrix_product_rate()]
    slow = _search(weights, lambda: [exhaustive.encode(weight) for weight in weights])
    rates.append(matrix_product_rate())
    fast = _search(weights, lambda: pruned.encode_together(weights))
    rates.append(matrix_product_rate())
    count, rate, more = sum(weight.size for weight in weights), float(np.mean(rates)), fast.error / slow.error
    operations = sum(-(-weight.size // block) for weight in weights) * 65535 * block * (block + 1)
    print(
        f"{title}: exhaustive {count / slow.seconds:,.0f} weights/s a core ({count:,} weights in {slow.seconds:.0f} s),"
        f" {operations / slow.seconds / rate:.2f} of the float32 matrix-product rate ({rate / 1e9:.0f} GFLOP/s); pruned"
        f" {count / fast.seconds:,.0f} weights/s, {slow.seconds / fast.seconds:.1f} times as fast with"
        f" {100 * (more**0.5 - 1):.2f} % more ‖W - Ŵ‖ ({100 * (more - 1):.2f} % more of its square);"
        f" {tables:.1f} s for tables that the process did not have yet, not counted",
        flush=True,
    )


def print_weighted_rates(
    title: str, weights: Sequence[NDArray[np.float32]], importances: Sequence[NDArray[np.float64]]
) -> None:
    """Both searches where columns weigh differently, matrix by matrix, as a calibrated export codes them.

    Args:
        title: of the matrices.
        weights: [rows, columns] each.
        importances: [columns] each.
    """
    for block, coefficients in ((8, 3), (12, 4)):
        found = []
        for search in ("pruned", "exhaustive"):
            codec, seconds, error = SeedLM(block, coefficients, search=search), 0.0, 0.0
            codec.encode(weights[0], Statistics(importances[0]))  # tables are made once a process
            for weight, importance in zip(weights, importances, strict=True):
                started = time.process_time()
                encoded = codec.encode(weight, Statistics(importance))
                seconds += time.process_time() - started
                error += float((importance * (weight - decode(encoded, threads=1)) ** 2).sum())
            found.append(Searched(seconds, error))
        fast, slow = found
        count = sum(weight.size for weight in weights)
        print(
            f"{title}, {count:,} weights with importances: SeedLM ({block}, {coefficients}): exhaustive"
            f" {count / slow.seconds:,.0f} weights/s a core; pruned {count / fast.seconds:,.0f} weights/s,"
            f" {slow.seconds / fast.seconds:.1f} times as fast with {100 * (fast.error / slow.error - 1):.2f} % more"
            " weighted squared error",
            flush=True,
        )
