"""Rows searched for the blocks that change a layer's outputs least: the compiled search over tiles of rows, by threads.

What a row may become is `blocks`'s; whether it is taken is left to `rounding`.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgepack.kernels.native import library, pointer, record
from edgepack.quant.refine.blocks import FORMS, Scales
from edgepack.quant.row_feedback import inverse_upper

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.gguf.types import GGMLType

SWEEPS = 5  # of descent, at most: the next would give .2 % of the loss (tools/bench_refine.py)
# Of H's diagonal, a column: what is added to it. H of some ten thousand tokens fits those tokens better than others of
# the same text: without it the loss under another text's H is up to 5 % higher (docs/refine.md).
_SHRINKAGE, _MOST_SHRINKAGE = 1 / 12288, 0.3
# Of a half behind its first one, where the bits of an archive count: with 7 a search among scales finds as good ones as
# with all 10, with 6 the loss of Q5_1 is 8 % and with 5 20 % higher (docs/lab-notes.md).
_DIGITS = 7
_TILE = 64  # rows of one call
_BEHIND = 1024  # numbers; 64 to 1024 bytes were seen to be read
_WRITTEN = ("steps", "floor_steps", "scales", "floors", "quants")


@dataclass(frozen=True)
class Geometry:
    """What errors cost, in the order in which columns are rounded.

    Attributes:
        order: [in]: which column comes when; columns of a group stay side by side.
        curvature: H, damped, positive definite, as panels: float32 [groups, in, group].
        upper: U with H⁻¹ = UᵀU, as panels.
        local: the same of each group's part of H, float32 [groups, group, group].
    """

    order: NDArray[np.intp]
    curvature: NDArray[np.float32]
    upper: NDArray[np.float32]
    local: NDArray[np.float32]

    @classmethod
    def of(
        cls,
        inputs: torch.Tensor,
        damping: float,
        group: int,
        order: NDArray[np.intp] | None = None,
        *,
        shrunk: bool = True,
    ) -> Geometry:
        """From H [in, in].

        Args:
            inputs: H, positive semi-definite.
            damping: fraction of the mean diagonal that is added to it.
            group: columns that share a scale; divides `in`.
            order: of columns; as they are where None.
            shrunk: whether a fraction of each column's own, which grows with their number, is added as well.
        """
        order = np.arange(len(inputs)) if order is None else order
        damped = inputs.double()[order][:, order]
        diagonal = damped.diagonal()
        dead = diagonal <= 0
        mean = diagonal[~dead].mean() if not dead.all() else torch.ones((), dtype=torch.float64)
        share = min(len(damped) * _SHRINKAGE, _MOST_SHRINKAGE) if shrunk else 0.0
        damped = damped + torch.diag(torch.where(dead, mean, damping * mean + share * diagonal))
        count = len(damped) // group
        upper = inverse_upper(damped)
        parts = damped.reshape(count, group, count, group)[torch.arange(count), :, torch.arange(count)]
        quadratic, factor = (_float(part.reshape(-1, count, group).transpose(0, 1)) for part in (damped, upper))
        return cls(order, quadratic, factor, _float(inverse_upper(parts)))


def _float(values: torch.Tensor) -> NDArray[np.float32]:
    """As float32 with room behind: what gcc 12 makes of `gather` for x86-64-v4 loads past the last rows of a panel."""
    flat = np.zeros(values.numel() + _BEHIND, np.float32)
    found: NDArray[np.float32] = flat[: values.numel()].reshape(values.shape)
    found[...] = values.float().numpy()
    return found


def heavy_first(costs: NDArray[Any], group: int) -> NDArray[np.intp]:
    """Columns so that groups with the greatest costs come first, and in each the columns with the greatest.

    Args:
        costs: [in].
        group: columns that share a scale.
    """
    parts = costs.reshape(-1, group)
    within = np.argsort(-parts, axis=1, kind="stable")
    groups = np.argsort(-parts.sum(1), kind="stable")
    return np.asarray((within + np.arange(len(parts))[:, None] * group)[groups].reshape(-1))


def search_rows(
    weight: NDArray[np.float32],
    kind: GGMLType,
    start: Scales,
    geometry: Geometry,
    threads: int | None = None,
    sweeps: int | None = None,
    rates: NDArray[np.float32] | None = None,
) -> tuple[Scales, NDArray[np.int8]]:
    """Scales and integers of rows; the same for any number of threads.

    Args:
        weight: float32 [rows, columns].
        kind: of `FORMS`.
        start: scales near to which others are tried; not modified.
        geometry: of the columns, its groups those of the type.
        threads: as many as there are cores where None.
        sweeps: of descent after feedback, at most; `SWEEPS` where None.
        rates: of each row, what a bit in the archive is worth in e H eᵀ, float32 [rows]; where None none counts.
    """
    form, order = FORMS[kind], geometry.order
    grains = form.grains if rates is not None else (1, 1)
    scale_bounds, floor_high = form.code_bounds if rates is not None else (form.scales, form.floors or 0)
    groups = order[:: form.group] // form.group
    per_block = kind.block_size // form.group
    arrays = {
        "weights": np.ascontiguousarray(weight[:, order]), "upper": geometry.upper, "local": geometry.local,
        "curvature": geometry.curvature, "unit_of": (groups // per_block).astype(np.int32),
        "steps": start.steps.copy(), "floor_steps": start.floor_steps.copy(),
        "scales": np.ascontiguousarray(start.scales[:, groups]),
        "floors": np.ascontiguousarray(start.floors[:, groups]), "quants": np.empty(weight.shape, np.int8),
        "rates": np.ascontiguousarray(np.zeros(len(weight)) if rates is None else rates, np.float32),
    }  # fmt: skip
    numbers = {
        "columns": weight.shape[1], "group": form.group, "units": start.steps.shape[1],
        "sweeps": SWEEPS if sweeps is None else sweeps,
        "affine": int(form.floors is not None), "uneven": int(form.uneven), "lowest": form.lowest,
        "highest": form.highest, "scale_low": scale_bounds[0], "scale_high": scale_bounds[1],
        "floor_high": floor_high, "rated": int(rates is not None), "zero": form.zero,
        "scale_grain": grains[0], "floor_grain": grains[1], "digits": _DIGITS, "last_digit": 2.0**-_DIGITS,
    }  # fmt: skip
    _run(arrays, numbers, len(weight), threads or os.cpu_count() or 1)
    back, columns = np.argsort(groups), np.argsort(order)
    scales, floors = (np.ascontiguousarray(arrays[name][:, back]) for name in ("scales", "floors"))
    return Scales(arrays["steps"], arrays["floor_steps"], scales, floors), arrays["quants"][:, columns]


def _run(arrays: dict[str, Any], numbers: dict[str, float], rows: int, threads: int) -> None:
    matrix = record("edgepack_refine_matrix", numbers, arrays, _WRITTEN)
    size = library().edgepack_refine_scratch(int(numbers["columns"]), int(numbers["group"]), int(numbers["units"]))

    def one(first: int) -> None:
        scratch = np.empty(size, np.float32)
        count = min(_TILE, rows - first)
        if library().edgepack_refine_rows(matrix, first, count, pointer(scratch, "float *")):
            raise ValueError(f"the kernel takes no matrix of {numbers}")

    tiles = range(0, rows, _TILE)
    if threads == 1 or len(tiles) == 1:
        for first in tiles:
            one(first)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, tiles))
