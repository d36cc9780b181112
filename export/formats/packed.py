"""What all quantised checkpoints share: raw arrays out of a source, bit fields, and the source without packing.

Each format has a module of its own; which one a checkpoint has is left to `quantized_checkpoint`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from edgepack.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from edgepack.gguf.types import GGMLType
    from edgepack.model import TensorSpec

    Matrix = NDArray[np.float32]
    Integers = NDArray[np.int32]

_WORD_BITS = 32
_NUMPY: dict[str, np.dtype[Any]] = {
    "i8": np.dtype("i1"),
    "u8": np.dtype("u1"),
    "i16": np.dtype("<i2"),
    "u16": np.dtype("<u2"),
    "i32": np.dtype("<i4"),
    "i64": np.dtype("<i8"),
    "f8_e4m3": np.dtype("u1"),
    "f8_e5m2": np.dtype("u1"),
    "f8_e8m0": np.dtype("u1"),
}
_KEPT_TENSORS = 3


class RawTensors(Protocol):
    """A tensor source that also gives stored bytes."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """As `TensorSource.specs`."""
        ...

    def read_rows(self, name: str, start: int, stop: int) -> Matrix:
        """As `TensorSource.read_rows`, for floats."""
        ...

    def read_bytes(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """Bytes `start` (included) to `stop` (not included) of a tensor; uint8."""
        ...


class PackedWeight(Protocol):
    """One weight that several stored tensors encode."""

    @property
    def spec(self) -> TensorSpec:
        """The weight as a model sees it: name, shape [out, in], and the format's name for a dtype."""
        ...

    @property
    def parts(self) -> frozenset[str]:
        """The stored tensors it is made of."""
        ...

    def read_rows(self, start: int, stop: int) -> Matrix:
        """Rows `start` to `stop` (not included): float32, shape [stop - start, in]."""
        ...


@runtime_checkable
class BlockWeight(Protocol):
    """A packed weight whose numbers are those of a type of ggml's."""

    @property
    def block_type(self) -> GGMLType:
        """That type."""
        ...

    def read_blocks(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Rows `start` to `stop` (not included): uint8, shape [stop - start, bytes of a row]."""
        ...


@dataclass(frozen=True)
class DequantizedTensors:
    """A source in which packed weights are ordinary float tensors: a `TensorSource`. Does not modify `base`.

    Attributes:
        base: the source below.
        packed: the packed weights.
        hidden: further stored tensors that carry nothing a weight needs, such as activation scales.
    """

    base: RawTensors
    packed: Sequence[PackedWeight]
    hidden: frozenset[str] = frozenset()
    _weights: dict[str, PackedWeight] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._weights.update({weight.spec.name: weight for weight in self.packed})

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Plain tensors in the base's order, then the packed weights."""
        gone = self.hidden.union(*(weight.parts for weight in self.packed))
        plain = {name: spec for name, spec in self.base.specs.items() if name not in gone}
        return plain | {name: weight.spec for name, weight in self._weights.items()}

    def read_rows(self, name: str, start: int, stop: int) -> Matrix:
        """As `TensorSource.read_rows`."""
        if name in self._weights:
            return self._weights[name].read_rows(start, stop)
        return self.base.read_rows(name, start, stop)

    def block_type(self, name: str) -> GGMLType | None:
        """As `BlockSource.block_type`."""
        weight = self._weights.get(name)
        return weight.block_type if isinstance(weight, BlockWeight) else None

    def read_blocks(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """As `BlockSource.read_blocks`; only of tensors that have a `block_type`."""
        weight = self._weights[name]
        if not isinstance(weight, BlockWeight):
            raise CheckpointError(f"tensor '{name}': expected blocks of ggml's, got {weight.spec.dtype}")
        return weight.read_blocks(start, stop)


class KeptArrays:
    """The arrays of the few tensors read last: successive rows of a transposed weight share one read.

    Thread-safe. Memory is bounded by `_KEPT_TENSORS` packed tensors.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Any] = OrderedDict()

    def get(self, key: str, load: Callable[[], Any]) -> Any:
        """What `load` gives for `key`, called at most once while it is kept."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = load()
                while len(self._kept) > _KEPT_TENSORS:
                    self._kept.popitem(last=False)
            return self._kept[key]


def expect(source: RawTensors, name: str, dtypes: Sequence[str], shape: Sequence[int | None]) -> tuple[int, ...]:
    """The shape of a stored tensor, checked.

    Args:
        source: where it is stored.
        name: its name.
        dtypes: the allowed storage types.
        shape: expected sizes; None allows any.

    Raises:
        CheckpointError: absent, or of another type or shape.
    """
    spec = source.specs.get(name)
    if spec is None:
        raise CheckpointError(f"checkpoint lacks tensor '{name}', which its quantisation needs")
    fits = len(spec.shape) == len(shape)
    fits &= all(want in (None, got) for want, got in zip(shape, spec.shape, strict=False))
    if spec.dtype not in dtypes or not fits:
        wanted = ["any" if size is None else size for size in shape]
        raise CheckpointError(
            f"tensor '{name}': expected {' or '.join(dtypes)} of shape {wanted}, got {spec.dtype} {list(spec.shape)}"
        )
    return spec.shape


def read_stored(source: RawTensors, name: str) -> NDArray[Any]:
    """A whole tensor in its storage type (8-bit floats as their bytes), in its own shape.

    Raises:
        CheckpointError: a storage type that no packed format uses.
    """
    spec = source.specs[name]
    rows = read_stored_rows(source, name, 0, spec.rows)
    return rows.reshape(spec.shape)


def read_stored_rows(source: RawTensors, name: str, start: int, stop: int) -> NDArray[Any]:
    """Rows `start` to `stop` (not included) in the storage type, shape [stop - start, columns]."""
    spec = source.specs[name]
    if spec.dtype not in _NUMPY:
        raise CheckpointError(f"tensor '{name}': expected packed integers, got {spec.dtype}")
    kind = _NUMPY[spec.dtype]
    row_bytes = spec.columns * kind.itemsize
    raw = source.read_bytes(name, start * row_bytes, stop * row_bytes)
    rows: NDArray[Any] = raw.view(kind).reshape(stop - start, spec.columns)
    return rows


def unpack_words(words: NDArray[np.int32], bits: int, count: int) -> Integers:
    """Bit fields along the first axis, least significant first, running on across words.

    Args:
        words: int32, shape [n, columns].
        bits: width of a field, 1 to 8.
        count: fields wanted.

    Returns:
        int32, shape [count, columns], values from 0 to 2^bits - 1.
    """
    unsigned = words.view(np.uint32)
    first = np.arange(count) * bits
    word, shift = first // _WORD_BITS, (first % _WORD_BITS).astype(np.uint32)
    values = unsigned[word] >> shift[:, None]
    over = np.flatnonzero(shift > _WORD_BITS - bits)
    values[over] |= unsigned[word[over] + 1] << (np.uint32(_WORD_BITS) - shift[over])[:, None]
    masked: Integers = (values & np.uint32((1 << bits) - 1)).astype(np.int32)
    return masked


def whole_number(config: Mapping[str, Any], key: str, allowed: Sequence[int] | None = None) -> int:
    """A member of a quantisation's configuration that must be a whole number.

    Raises:
        CheckpointError: absent, of another type, or not one of `allowed`.
    """
    value = config.get(key)
    if type(value) is not int or (allowed is not None and value not in allowed):
        wanted = "a whole number" if allowed is None else " or ".join(map(str, allowed))
        raise CheckpointError(f"quantization_config: expected {key} to be {wanted}, got {value!r}")
    return value


def group_rows(config: Mapping[str, Any], columns: int) -> int:
    """`group_size`: weights of a row that share a scale; -1 or nothing means the whole row.

    Raises:
        CheckpointError: not a whole number from 1.
    """
    size = config.get("group_size")
    size = columns if size is None or size == -1 else whole_number(config, "group_size")
    if size < 1:
        raise CheckpointError(f"quantization_config: expected group_size of at least 1 or -1, got {size}")
    return size
