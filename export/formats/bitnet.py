"""BitNet b1.58: weights of -1, 0 and 1, four to a byte, and one scale a tensor; or to be made so while they are read.

Layout and arithmetic: transformers' integrations/bitnet.py. A byte of row r holds rows r, r + n, r + 2n and r + 3n,
from its low bits up, each plus one, where n is the number of packed rows. `bitlinear` divides by the scale,
`autobitlinear` multiplies by it; its `online` mode keeps floats and rounds them by their mean magnitude.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import CheckpointError, UnsupportedModelError
from edgepack.export.formats.packed import RawTensors, expect, read_stored_rows
from edgepack.model import TensorSpec, read_tensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from edgepack.export.formats.packed import PackedWeight

    Matrix = NDArray[np.float32]

_PER_BYTE = 4
_SCALES = ("f16", "bf16", "f32")
_LINEAR = ("bitlinear", "autobitlinear")
_MODES = ("offline", "online")
_LEAST_MEAN = 1e-5  # of `WeightQuant`
_ROWS_AT_ONCE = 1024


def find_bitnet(source: RawTensors, config: Mapping[str, Any]) -> Sequence[PackedWeight]:
    """Every ternary weight of a BitNet checkpoint.

    Raises:
        UnsupportedModelError: norms inside of linear layers, which no graph of llama.cpp has there.
        CheckpointError: an unknown layer or mode, or shapes that contradict each other.
    """
    linear, mode = config.get("linear_class", _LINEAR[0]), config.get("quantization_mode", _MODES[0])
    if linear not in _LINEAR or mode not in _MODES:
        raise CheckpointError(
            f"quantization_config: expected linear_class {' or '.join(_LINEAR)} and quantization_mode"
            f" {' or '.join(_MODES)}, got {linear!r} and {mode!r}"
        )
    if config.get("use_rms_norm"):
        raise UnsupportedModelError(
            "quantization_config: use_rms_norm is true: llama.cpp has no norm inside of a layer"
        )
    if linear == "autobitlinear" and mode == "online":
        return [RoundedWeight(source, name) for name in _linear_weights(source, config)]
    names = [name for name, spec in source.specs.items() if spec.dtype == "u8" and name.endswith(".weight")]
    return [_open(source, name, divides=linear == "bitlinear") for name in names]


def _linear_weights(source: RawTensors, config: Mapping[str, Any]) -> list[str]:
    kept = config.get("modules_to_not_convert") or []
    if not isinstance(kept, list) or not all(isinstance(name, str) for name in kept):
        raise CheckpointError(f"quantization_config: expected modules_to_not_convert to be names, got {kept!r}")
    apart = ("embed_tokens", "lm_head", *kept)
    return [
        name
        for name, spec in source.specs.items()
        if name.endswith(".weight") and len(spec.shape) == 2 and not any(part in name for part in apart)
    ]


def _open(source: RawTensors, name: str, *, divides: bool) -> TernaryWeight:
    expect(source, name, ("u8",), (None, None))
    scale = name + "_scale"
    if source.specs.get(scale) is None or source.specs[scale].shape not in ((), (1,)):
        raise CheckpointError(f"tensor '{scale}': expected one number beside '{name}'")
    if source.specs[scale].dtype not in _SCALES:
        raise CheckpointError(f"tensor '{scale}': expected {' or '.join(_SCALES)}, got {source.specs[scale].dtype}")
    return TernaryWeight(source, name, divides)


@dataclass(frozen=True)
class TernaryWeight:
    """One packed weight: digit × scale, or digit ÷ scale."""

    source: RawTensors
    name: str
    divides: bool

    @property
    def spec(self) -> TensorSpec:
        """The weight as a model sees it: four rows to a packed one."""
        rows, columns = self.source.specs[self.name].shape
        return TensorSpec(self.name, (_PER_BYTE * rows, columns), "ternary2")

    @property
    def parts(self) -> frozenset[str]:
        """The stored tensors."""
        return frozenset((self.name, self.name + "_scale"))

    def read_rows(self, start: int, stop: int) -> Matrix:
        """As `PackedWeight.read_rows`.

        Raises:
            CheckpointError: a digit that is none of the three.
        """
        packed, pieces = self.source.specs[self.name].shape[0], []
        while start < stop:
            quarter, row = divmod(start, packed)
            end = min(stop, (quarter + 1) * packed)
            stored = read_stored_rows(self.source, self.name, row, row + end - start)
            pieces.append((stored >> (2 * quarter)) & 3)
            start = end
        codes = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        if codes.size and codes.max() > 2:
            raise CheckpointError(f"tensor '{self.name}': expected digits 0, 1 and 2, got 3")
        digits: Matrix = codes.astype(np.float32) - np.float32(1)
        return digits * self._scale

    @cached_property
    def _scale(self) -> NDArray[np.float32]:
        """What digits are multiplied by, shape []."""
        scale: NDArray[np.float32] = read_tensor(self.source, self.name + "_scale").reshape(())
        if not np.isfinite(scale) or scale == 0:
            raise CheckpointError(f"tensor '{self.name}_scale': expected a number other than 0, got {scale}")
        return np.reciprocal(scale) if self.divides else scale


@dataclass(frozen=True)
class RoundedWeight:
    """One weight of floats, rounded to -1, 0 and 1 times its mean magnitude (`WeightQuant`)."""

    source: RawTensors
    name: str

    @property
    def spec(self) -> TensorSpec:
        """The weight's own."""
        return self.source.specs[self.name]

    @property
    def parts(self) -> frozenset[str]:
        """The stored tensor."""
        return frozenset((self.name,))

    def read_rows(self, start: int, stop: int) -> Matrix:
        """As `PackedWeight.read_rows`."""
        rows = self.source.read_rows(self.name, start, stop)
        inverse = np.float32(1 / self._mean)
        rounded: Matrix = np.clip(np.round(rows * inverse), -1, 1) / inverse
        return rounded

    @cached_property
    def _mean(self) -> float:
        rows, columns = self.spec.shape
        total = sum(
            float(np.abs(self.source.read_rows(self.name, at, min(at + _ROWS_AT_ONCE, rows))).sum(dtype=np.float64))
            for at in range(0, rows, _ROWS_AT_ONCE)
        )
        return max(total / max(rows * columns, 1), _LEAST_MEAN)
