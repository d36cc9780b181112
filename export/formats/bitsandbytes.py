"""bitsandbytes: 4-bit codes (NF4, FP4) with plain or doubly quantised block maxima, and LLM.int8 weights.

Layout: https://github.com/bitsandbytes-foundation/bitsandbytes (`QuantState.as_dict(packed=True)`). The weight is a
flat run of nibbles, the high one first; each block of 64 has a maximum, itself 8-bit when nested.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import CheckpointError
from edgepack.export.formats.packed import RawTensors, expect, read_stored, read_stored_rows
from edgepack.model import TensorSpec, read_tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from edgepack.export.formats.packed import PackedWeight

    Matrix = NDArray[np.float32]

_STATE = ".quant_state.bitsandbytes__"
_MAX_STATE_BYTES = 1 << 16
_INT8_RANGE = 127.0


def find_bitsandbytes(source: RawTensors, _config: Mapping[str, Any]) -> list[PackedWeight]:
    """Every packed weight of a bitsandbytes checkpoint.

    Raises:
        CheckpointError: a state or shapes that contradict each other.
    """
    states = [name for name in source.specs if _STATE in name]
    scales = [name for name in source.specs if name.endswith(".SCB")]
    found: list[PackedWeight] = [FourBitWeight(source, *name.split(_STATE, 1)) for name in states]
    found += [Int8Weight(source, name.removesuffix(".SCB")) for name in scales]
    names = {weight.spec.name for weight in found}  # reads every state: a bad one is found before any work
    if len(names) != len(found):
        raise CheckpointError("bitsandbytes checkpoint: expected each weight once, got one twice")
    return found


@dataclass(frozen=True)
class FourBitWeight:
    """One weight of 4-bit codes.

    Attributes:
        source: where it is stored.
        name: the weight's name.
        kind: `nf4` or `fp4`.
    """

    source: RawTensors
    name: str
    kind: str

    @cached_property
    def spec(self) -> TensorSpec:
        """The weight as a model sees it.

        Raises:
            CheckpointError: the state is unreadable, or stored tensors do not fit it.
        """
        shape = self._state.get("shape")
        if not isinstance(shape, list) or not shape or not all(type(n) is int and 0 < n < 2**40 for n in shape):
            raise self._bad(f"expected a shape of positive numbers, got {shape!r}")
        count, block = prod(shape), self._size("blocksize")
        spec = self.source.specs.get(self.name)
        if spec is None or spec.dtype != "u8" or prod(spec.shape) != -(-count // 2):
            raise self._bad(f"expected {-(-count // 2)} bytes of codes for {shape}")
        blocks = -(-count // block)
        if self._nested:
            expect(self.source, f"{self.name}.absmax", ("u8",), (blocks,))
            expect(self.source, f"{self.name}.nested_absmax", ("f32",), (-(-blocks // self._size("nested_blocksize")),))
            expect(self.source, f"{self.name}.nested_quant_map", ("f32",), (256,))
        else:
            expect(self.source, f"{self.name}.absmax", ("f32",), (blocks,))
        expect(self.source, f"{self.name}.quant_map", ("f32",), (16,))
        return TensorSpec(self.name, tuple(shape), self.kind)

    @property
    def parts(self) -> frozenset[str]:
        """The stored tensors."""
        return frozenset(name for name in self.source.specs if name == self.name or name.startswith(f"{self.name}."))

    def read_rows(self, start: int, stop: int) -> Matrix:
        """As `PackedWeight.read_rows`."""
        columns = self.spec.columns
        first, last = start * columns, stop * columns
        raw = self.source.read_bytes(self.name, first // 2, -(-last // 2))
        codes = np.stack([raw >> 4, raw & 15], axis=1).reshape(-1)[first % 2 :][: last - first]
        block = self._size("blocksize")
        low = first // block
        maxima = np.repeat(self._maxima(low, -(-last // block)), block)[first - low * block :][: last - first]
        rows: Matrix = (self._code_values[codes] * maxima).reshape(stop - start, columns)
        return rows

    @cached_property
    def _state(self) -> dict[str, Any]:
        name = f"{self.name}{_STATE}{self.kind}"
        spec = self.source.specs[name]
        if spec.dtype != "u8" or prod(spec.shape) > _MAX_STATE_BYTES:
            raise self._bad(f"expected a state of at most {_MAX_STATE_BYTES} bytes, got {spec.dtype} {spec.shape}")
        try:
            state = json.loads(read_stored(self.source, name).tobytes())
        except (ValueError, RecursionError) as error:
            raise self._bad(f"expected JSON, got {error}") from None
        if not isinstance(state, dict):
            raise self._bad(f"expected an object, got {type(state).__name__}")
        return state

    @property
    def _nested(self) -> bool:
        return f"{self.name}.nested_absmax" in self.source.specs

    @cached_property
    def _code_values(self) -> Matrix:
        return read_tensor(self.source, f"{self.name}.quant_map")

    @cached_property
    def _nested_values(self) -> tuple[Matrix, Matrix, float]:
        offset = self._state.get("nested_offset", 0.0)
        if type(offset) not in {int, float}:
            raise self._bad(f"expected nested_offset to be a number, got {offset!r}")
        values = read_tensor(self.source, f"{self.name}.nested_quant_map")
        return values, read_tensor(self.source, f"{self.name}.nested_absmax"), float(offset)

    def _maxima(self, start: int, stop: int) -> Matrix:
        """Maxima of blocks `start` to `stop` (not included)."""
        if not self._nested:
            return self.source.read_rows(f"{self.name}.absmax", 0, 1)[0, start:stop]
        codes = self.source.read_bytes(f"{self.name}.absmax", start, stop)
        values, outer, offset = self._nested_values
        outer_of = np.arange(start, stop) // self._size("nested_blocksize")
        maxima: Matrix = values[codes] * outer[outer_of] + np.float32(offset)
        return maxima

    def _size(self, key: str) -> int:
        value = self._state.get(key)
        if type(value) is not int or not 0 < value <= 1 << 20:
            raise self._bad(f"expected {key} to be a positive number, got {value!r}")
        return value

    def _bad(self, what: str) -> CheckpointError:
        return CheckpointError(f"tensor '{self.name}': bitsandbytes state: {what}")


@dataclass(frozen=True)
class Int8Weight:
    """One weight of LLM.int8: int8 rows, each with its maximum."""

    source: RawTensors
    name: str

    @cached_property
    def spec(self) -> TensorSpec:
        """The weight as a model sees it; raises CheckpointError when its parts do not fit."""
        weight = f"{self.name}.weight"
        shape = expect(self.source, weight, ("i8",), (None, None))
        expect(self.source, f"{self.name}.SCB", ("f32",), (shape[0],))
        return TensorSpec(weight, shape, "int8")

    @property
    def parts(self) -> frozenset[str]:
        """The stored tensors."""
        names = ("weight", "SCB", "weight_format")
        return frozenset(f"{self.name}.{part}" for part in names)

    def read_rows(self, start: int, stop: int) -> Matrix:
        """As `PackedWeight.read_rows`."""
        values = read_stored_rows(self.source, self.spec.name, start, stop)
        rows: Matrix = values * (self._scales[start:stop, None] / np.float32(_INT8_RANGE))
        return rows

    @cached_property
    def _scales(self) -> Matrix:
        return read_tensor(self.source, f"{self.name}.SCB")
