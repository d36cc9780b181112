"""One tensor of a GGUF as parameters that are tuned: what its bytes hold, as numbers that gradients change.

A quantised tensor has four kinds: the steps of its blocks, the codes of their groups, minima, and integers; a vector of
floats has its elements. Forward is always what the bytes will be. Which rows of the model they are is left to
`student`, how they are moved to `loop`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import nn

from edgepack.gguf.types import GGMLType
from edgepack.quant.codecs.ggml.codec import quantize_rows
from edgepack.quant.codecs.ggml.fields import FIELD_TYPES, Fields, block_format, read_fields, write_fields
from edgepack.quant.tuning.parts import CODES, GUMBEL, INTEGERS, PARTS, ROWS, STE, STEPS, VECTORS
from edgepack.quant.tuning.relaxed import RelaxedMoves
from edgepack.quant.tuning.straight_through import GridValues, as_bfloat, as_half, as_integers, offsets_in_cells

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


_FLOATS = {GGMLType.F32: lambda values: values, GGMLType.F16: as_half, GGMLType.BF16: as_bfloat}
_PART_OF = {
    "integers": INTEGERS,
    "moves.latent": INTEGERS,
    "codes_moved": CODES,
    "minimum_codes_moved": CODES,
    "rows_moved": ROWS,
}
_UNLIKE = 1.0  # ‖file - original‖² / ‖original‖² from which the original does not say where in a cell a weight is


class TunedTensor(Protocol):
    """A tensor of the file with parameters."""

    kind: GGMLType

    def values(self) -> torch.Tensor:
        """float32 weights [rows, columns] (a vector is [elements, 1]), exactly those that `blocks` hold."""
        ...

    def parameters_by_part(self) -> Mapping[str, list[nn.Parameter]]:
        """The parameters, in units in which every kind has one rate."""
        ...

    def relax(self, heat: float | None, seed: int) -> None:
        """Draw moves of integers at a temperature, where they are choices; None: as the bytes will be."""
        ...

    def settle(self) -> None:
        """Put parameters that left their range back to its end; called after every step."""
        ...

    def blocks(self) -> NDArray[np.uint8]:
        """The bytes of the tensor: uint8 [rows, bytes of a row]."""
        ...


def can_tune(kind: GGMLType, shape: tuple[int, ...], parts: frozenset[str]) -> bool:
    """Whether a tensor has anything to tune: blocks with steps, or a vector of floats."""
    if len(shape) == 1:
        return kind in _FLOATS and VECTORS in parts
    return kind in FIELD_TYPES and bool(parts - {VECTORS})


class TunedVector(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """A norm's weights or a bias: floats [n].

    Args:
        kind: F32, F16 or BF16.
        elements: float32 [n].
    """

    def __init__(self, kind: GGMLType, elements: torch.Tensor) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("start", elements.clone())
        self.register_buffer("unit", elements.abs().mean().clamp_min(1e-8))
        self.moved = nn.Parameter(torch.zeros_like(elements))

    def values(self) -> torch.Tensor:
        """As `TunedTensor.values`: [n, 1]."""
        exact: torch.Tensor = _FLOATS[self.kind](self.start + self.moved * self.unit)
        return exact[:, None]

    def parameters_by_part(self) -> Mapping[str, list[nn.Parameter]]:
        """As `TunedTensor.parameters_by_part`: in units of the mean magnitude."""
        return {VECTORS: [self.moved]}

    def relax(self, heat: float | None, seed: int) -> None:
        """Nothing to do."""

    def settle(self) -> None:
        """Nothing to do."""

    def blocks(self) -> NDArray[np.uint8]:
        """As `TunedTensor.blocks`: one row."""
        with torch.no_grad():
            return quantize_rows(self.kind, self.values().cpu().numpy().reshape(1, -1))


class TunedBlocks(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """A quantised matrix: uint8 [rows, bytes of a row].

    Integers become latent numbers that round to them: each as near as that allows to where the original's weight lies,
    so that weights at the edge of their cell move first. Or, by Gumbel relaxation, those at the edge choose to move by
    one or to stay (`relaxed`).

    Args:
        kind: a type with fields.
        rows: the bytes.
        original: float32 [rows, columns], the weights before quantisation; None leaves latent numbers on the integers.
        parts: which kinds of parameters there are.
        moves: how integers move: `STE` or `GUMBEL`.
    """

    def __init__(
        self,
        kind: GGMLType,
        rows: NDArray[np.uint8],
        original: torch.Tensor | None,
        parts: frozenset[str],
        moves: str = STE,
    ) -> None:
        super().__init__()
        self.kind, self.rows, self.parts = kind, rows, parts
        self.form, fields = block_format(kind), read_fields(kind, rows)
        self.register_buffer("levels", torch.from_numpy(self.form.levels.copy()))
        self._fields = fields
        self._register("step", fields.step, STEPS)
        self._register("minimum", fields.minimum, STEPS)
        self._register("codes", fields.codes, CODES)
        self._register("minimum_codes", fields.minimum_codes, CODES)
        if ROWS in parts:
            self.rows_moved = nn.Parameter(torch.zeros(len(rows), 1))
        integers = torch.from_numpy(fields.integers).unflatten(1, (-1, self.form.group))
        self.moves: RelaxedMoves | None = None
        if INTEGERS in parts and moves == GUMBEL:
            self.moves = RelaxedMoves(self._offsets(integers, original))
        if INTEGERS in parts and moves == STE:
            self.integers = nn.Parameter(integers.float() + self._offsets(integers, original))
        else:
            self.register_buffer("integers", integers)

    def _register(self, name: str, field: NDArray[np.generic] | None, part: str) -> None:
        """A field as a buffer, and how far it is moved, in units of the mean magnitude of codes or of itself."""
        if field is None:
            self.register_buffer(name, None)
            return
        start = torch.from_numpy(field.astype(np.float32)).reshape(len(field), -1, 1)
        self.register_buffer(name, start)
        if part in self.parts:
            self.register_parameter(f"{name}_moved", nn.Parameter(torch.zeros_like(start)))

    def _field(self, name: str) -> torch.Tensor | None:
        """A field as the bytes hold it."""
        start: torch.Tensor | None = getattr(self, name)
        moved = getattr(self, f"{name}_moved", None)
        if start is None:
            return start
        if name in ("step", "minimum"):
            return self._moved_step(start, moved)
        if moved is None:
            return start
        limits = self.form.codes if name == "codes" else self.form.minimum_codes
        assert limits is not None
        return as_integers(start + moved * start.abs().mean().clamp_min(1), limits.lowest, limits.highest)

    def _moved_step(self, start: torch.Tensor, moved: torch.Tensor | None) -> torch.Tensor:
        factor = None if moved is None else 1 + moved
        if ROWS in self.parts:
            each = (1 + self.rows_moved).expand(-1, len(start) // len(self.rows)).reshape(start.shape)
            factor = each if factor is None else factor * each
        return start if factor is None else as_half(start * factor)

    def _scale_and_offset(self) -> tuple[torch.Tensor, torch.Tensor]:
        """[blocks, groups, 1] each, in ggml's own order of products."""
        step, codes = self._field("step"), self._field("codes")
        minimum, minimum_codes = self._field("minimum"), self._field("minimum_codes")
        assert step is not None
        scale = step if codes is None else step * codes
        if minimum is None:
            return scale, torch.zeros_like(scale)
        offset = minimum if minimum_codes is None else minimum * minimum_codes
        return scale, offset * self.form.minimum_sign

    def _offsets(self, integers: torch.Tensor, original: torch.Tensor | None) -> torch.Tensor:
        """From the integers to where the original's weights lie, within their cells; 0 where that says nothing."""
        indices = integers.float()
        if original is None:
            return torch.zeros_like(indices)
        scale, offset = (each.detach() for each in self._scale_and_offset())
        weights = original.reshape(indices.shape)
        error = (weights - GridValues.apply(indices, scale, offset, self.levels)).square().sum()
        if not error < _UNLIKE * weights.square().sum():  # folded, or of another model
            return torch.zeros_like(indices)
        wanted = (weights - offset) / torch.where(scale == 0, torch.inf, scale)
        return offsets_in_cells(indices, _positions(wanted, self.levels), len(self.levels) - 1)

    def values(self) -> torch.Tensor:
        """As `TunedTensor.values`."""
        scale, offset = self._scale_and_offset()
        if self.moves is None:
            exact: torch.Tensor = GridValues.apply(self.integers, scale, offset, self.levels)
        else:
            exact = offset + scale * between_levels(self._moved_integers(), self.levels)
        return exact.reshape(len(self.rows), -1)

    def _moved_integers(self) -> torch.Tensor:
        """Indices with their relaxed moves, within the type's range."""
        assert self.moves is not None
        moved: torch.Tensor = self.moves(self.integers).clamp(self._lowest, len(self.levels) - 1)
        return moved

    @property
    def _lowest(self) -> int:
        return 1 if self.kind is GGMLType.Q8_0 else 0  # ggml never writes -128: some backends negate what they read

    def relax(self, heat: float | None, seed: int) -> None:
        """As `TunedTensor.relax`."""
        if self.moves is not None:
            self.moves.relax(heat, seed)

    def parameters_by_part(self) -> Mapping[str, list[nn.Parameter]]:
        """As `TunedTensor.parameters_by_part`: steps relative, codes by their mean magnitude, integers as they are."""
        found: dict[str, list[nn.Parameter]] = {part: [] for part in PARTS}
        for name, parameter in self.named_parameters():
            part = _PART_OF.get(name, STEPS)
            found[part].append(parameter)
        return found

    def settle(self) -> None:
        """As `TunedTensor.settle`."""
        if self.moves is not None:
            self.moves.settle()
        elif INTEGERS in self.parts:
            self.integers.data.clamp_(self._lowest, len(self.levels) - 1)

    def _whole_integers(self) -> torch.Tensor:
        if self.moves is not None:
            self.moves.relax(None, 0)
            return self._moved_integers()
        return self.integers.round() if INTEGERS in self.parts else self.integers

    def blocks(self) -> NDArray[np.uint8]:
        """As `TunedTensor.blocks`."""
        count = len(self.step)
        with torch.no_grad():
            whole = self._whole_integers()
            fields = Fields(
                _array(self._field("step"), np.float16, (count,)),
                None if self.minimum is None else _array(self._field("minimum"), np.float16, (count,)),
                None if self.codes is None else _array(self._field("codes"), np.int16, (count, -1)),
                None if self.minimum_codes is None else _array(self._field("minimum_codes"), np.int16, (count, -1)),
                _array(whole, np.uint8, (count, -1)),
            )
        return write_fields(self.kind, self.rows, fields)


def between_levels(indices: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Levels at indices that need not be whole: between two levels in proportion; gradients pass to the indices."""
    if bool(levels[-1] - levels[0] == len(levels) - 1):
        return indices + levels[0]
    below = indices.detach().floor().clamp_(0, len(levels) - 2).long()
    return levels[below] + (indices - below) * (levels[below + 1] - levels[below])


def _array(values: torch.Tensor | None, dtype: type[np.generic], shape: tuple[int, ...]) -> NDArray[Any]:
    assert values is not None
    array: NDArray[Any] = values.cpu().numpy().astype(dtype).reshape(shape)
    return array


def _positions(values: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Where values lie among levels, in units of indices: between two levels in proportion, unbounded at the ends."""
    below = torch.bucketize(values, levels).sub_(1).clamp_(0, len(levels) - 2)
    low = levels[below]
    return below + (values - low) / (levels[below + 1] - low)
