"""Sweeps a matrix on the CPU: cuts its rows into tiles and hands them to the kernel, one thread a tile.

The formula is in kernels/wire_sweep.h. Rows depend on each other only through the paths of their lanes, and tiles hold
whole lanes, so results do not depend on the number of threads. What lattices and lanes are is left to `grid` and
`lanes`; the same sweep for other devices is `torch_sweep`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgepack.kernels.native import library, pointer, record
from edgepack.quant.wire.grid import PLAIN_ERROR
from edgepack.quant.wire.rates import ERROR, SLOPE, normalisers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Executor

    from numpy.typing import NDArray

    from edgepack.quant.wire.factor import SweepFactor
    from edgepack.quant.wire.grid import Lattice
    from edgepack.quant.wire.lanes import TrellisRounding

_LANES, _POSITIONS = 16, 128  # of a tile: the kernel's lanes side by side, and rows of a lane at most
_UNIT = 4  # positions that fill a panel of the kernel
_MOST = 32767  # an integer times its multiple
_WRITTEN = ("factors", "quants", "losses")
_ANY, _EVEN = 0, 1  # modes of the kernel beside the numbers of states


@dataclass(frozen=True)
class Swept:
    """What a sweep gives.

    Attributes:
        quants: int16 [out, in], multiples included, factors not.
        factors: int32 [out, groups], raised where integers would have passed their limits.
        losses: float64 [out], sum of squared column errors over U_kk²: the row's share of tr(E H Eᵀ).
        failures: groups that do not fit even with the greatest factor.
    """

    quants: NDArray[np.int16]
    factors: NDArray[np.int32]
    losses: NDArray[np.float64]
    failures: int


@dataclass(frozen=True)
class _Tile:
    """Rows that one call sweeps: their numbers int32 [positions, 16], -1 for none, and the kernel's mode."""

    rows: NDArray[np.int32]
    mode: int


def sweep(
    weights: torch.Tensor,
    factor: SweepFactor,
    lattice: Lattice,
    *,
    pull: float = 0.0,
    paths: TrellisRounding | None = None,
    pool: Executor | None = None,
    variant: int = -1,
) -> Swept:
    """Round all columns of `weights` (float32 [out, in], on the CPU) from left to right; does not modify its input.

    Args:
        weights: the matrix.
        factor: of its inputs.
        lattice: where the values may lie.
        pull: towards zero, see `rounding.round_matrix`.
        paths: a trellis; any integers where None.
        pool: whose threads share the tiles; the caller's thread alone where None.
        variant: instruction set, -1 for the fastest; all give the same bits.

    Raises:
        ValueError: columns or groups that the kernel cannot take.
    """
    rows, columns = weights.shape
    _check(columns, factor, lattice)
    steps = lattice.steps.numpy()
    arrays: dict[str, Any] = {
        "feedback": factor.packed, "diagonal": factor.diagonal, "multiples": lattice.multiples.numpy(),
        "limits": lattice.limits.numpy(), "normalisers": normalisers().numpy(), "logs": _logarithms(),
        "weights": weights.contiguous().numpy(), "steps": steps,
        "factors": lattice.factors.clone(memory_format=torch.contiguous_format).numpy(),
        "quants": np.zeros((rows, columns), np.int16), "losses": np.zeros(rows),
        **_rate_arrays(rows, factor, lattice, paths),
    }  # fmt: skip
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    tiles = list(_tiles(rows, paths))
    run = partial(_sweep_tile, arrays, _numbers(lattice, pull, paths), variant, SimpleQueue())
    failures = sum(map(run, tiles) if pool is None else pool.map(run, tiles))
    return Swept(arrays["quants"], arrays["factors"], arrays["losses"], failures)


def _check(columns: int, factor: SweepFactor, lattice: Lattice) -> None:
    if factor.columns != columns or len(lattice.multiples) != columns:
        raise ValueError(f"a sweep of {columns} columns: got a factor of {factor.columns}")
    if 32 % lattice.group or columns % lattice.group:
        raise ValueError(f"expected groups that divide 32 and {columns} columns, got {lattice.group}")
    if not 1 <= int(lattice.factors.min()) <= int(lattice.factors.max()) <= lattice.most_factor <= _MOST:
        raise ValueError(f"expected factors from 1 to {lattice.most_factor}, at most {_MOST}")
    if int((lattice.limits * lattice.multiples).max()) > _MOST or int(lattice.limits.min()) < 1:
        raise ValueError(f"expected integers of at most {_MOST}, got {int((lattice.limits * lattice.multiples).max())}")


def _rate_arrays(
    rows: int, factor: SweepFactor, lattice: Lattice, paths: TrellisRounding | None
) -> dict[str, NDArray[np.float32]]:
    """What integers cost: of rows, columns and groups."""
    costs = np.ones(rows, np.float32) if paths is None else paths.costs.numpy()
    squared = costs.astype(np.float64) * np.square(lattice.steps.numpy(), dtype=np.float64)
    levels = 1 / (squared[:, None] * np.square(lattice.factors.numpy(), dtype=np.float64)).mean(0)
    found = {"costs": costs, "levels": levels.astype(np.float32), "rate_noise": factor.noise}
    if paths is None or paths.rates is None:
        ones = {"rate_rows": np.ones(rows, np.float32), "rate_columns": np.ones(factor.columns, np.float32)}
        return {**found, **ones}
    return {
        **found,
        "rate_rows": paths.rates.rows.square().numpy(),
        "rate_columns": paths.rates.columns.square().numpy(),
    }


def _numbers(lattice: Lattice, pull: float, paths: TrellisRounding | None) -> dict[str, float]:
    numbers: dict[str, float] = {
        "columns": len(lattice.multiples), "group": lattice.group, "most_factor": lattice.most_factor, "pull": pull,
        "rungs": lattice.rungs, "rounding": PLAIN_ERROR if paths is None else ERROR,
        "slope": SLOPE if paths is not None and paths.rates is not None else 0.0,
    }  # fmt: skip
    if paths is not None:
        numbers["index_mask"], numbers["quantiser_mask"] = paths.code.index_mask, paths.code.quantiser_mask
    return numbers


def _tiles(rows: int, paths: TrellisRounding | None) -> Iterator[_Tile]:
    """All rows, whole lanes together; lanes of like length share a tile, so that few positions stay empty."""
    if paths is None:
        yield from _loose(np.arange(rows, dtype=np.int32), _ANY)
        return
    numbers = np.where(paths.lanes.real.numpy(), paths.lanes.rows.numpy(), -1).astype(np.int32)
    lengths = (numbers >= 0).sum(0)
    order = np.argsort(-lengths, kind="stable")
    for start in range(0, len(order), _LANES):
        some = order[start : start + _LANES]
        tile = np.full((-(-int(lengths[some].max()) // _UNIT) * _UNIT, _LANES), -1, np.int32)
        height = min(len(tile), len(numbers))
        tile[:height, : len(some)] = numbers[:height, some]
        yield _Tile(tile, paths.code.states)
    held = np.zeros(rows, bool)
    held[numbers[numbers >= 0]] = True
    yield from _loose((~held).nonzero()[0].astype(np.int32), _EVEN)


def _loose(numbers: NDArray[np.int32], mode: int) -> Iterator[_Tile]:
    """Rows that depend on no other."""
    for start in range(0, len(numbers), _LANES * _POSITIONS):
        some = numbers[start : start + _LANES * _POSITIONS]
        tile = np.full(-(-len(some) // (_LANES * _UNIT)) * _LANES * _UNIT, -1, np.int32)
        tile[: len(some)] = some
        yield _Tile(tile.reshape(-1, _LANES), mode)


def _sweep_tile(
    arrays: dict[str, Any],
    numbers: dict[str, float],
    variant: int,
    used: SimpleQueue[NDArray[np.float32]],
    tile: _Tile,
) -> int:
    """Sweep one tile; `used` holds scratch of tiles that are done: fresh memory costs a tenth of a sweep."""
    native = library()
    matrix = record("edgepack_wire_matrix", {**numbers, "states": tile.mode}, arrays, _WRITTEN)
    size = native.edgepack_wire_scratch(int(numbers["columns"]), len(tile.rows), tile.mode)
    try:
        scratch = used.get_nowait()
    except Empty:
        scratch = np.empty(size, np.float32)
    if len(scratch) < size:
        scratch = np.empty(size, np.float32)
    rows = pointer(tile.rows, "const int32_t *")
    failures = int(native.edgepack_wire_sweep(matrix, rows, len(tile.rows), pointer(scratch, "float *"), variant))
    used.put(scratch)
    if failures < 0:
        raise ValueError(f"the kernel takes no tile of {len(tile.rows)} positions with {numbers}")
    return failures


@cache
def _logarithms() -> NDArray[np.float32]:
    """ln(1 + n), for the pull and for what larger steps save."""
    return np.log1p(np.arange(_MOST + 1)).astype(np.float32)
