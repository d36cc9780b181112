"""What a model is between layers: named lazy tensors read by rows, with a configuration.

Values and protocols only. How files hold tensors is left to `export`; what is done to them to `quant`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Container, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.gguf.types import Value


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and storage type of a tensor in a checkpoint.

    Attributes:
        name: as the checkpoint has it, such as `model.layers.0.self_attn.q_proj.weight`.
        shape: row-major, as torch prints it.
        dtype: safetensors' spelling in lower case: `bf16`, `f16`, `f32`, `f64`, `f8_e4m3`, `i8`, `i32` …
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def columns(self) -> int:
        """Length of a row, the last dimension; 1 for a scalar."""
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        """Rows in all: the product of every dimension but the last; a vector is one row."""
        return prod(self.shape[:-1])


class TensorSource(Protocol):
    """Named tensors that are read piece by piece; reading is thread-safe."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Every tensor, in a stable order."""
        ...

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `start` (included) to `stop` (not included) of tensor `name`.

        Returns:
            float32, shape [stop - start, columns], owned by the caller.
        """
        ...


def read_tensor(source: TensorSource, name: str) -> NDArray[np.float32]:
    """A whole tensor in its own shape, float32."""
    spec = source.specs[name]
    return source.read_rows(name, 0, spec.rows).reshape(spec.shape)


@dataclass(frozen=True)
class Checkpoint:
    """A model as it was published.

    Attributes:
        path: the folder (or file) it came from.
        config: parsed `config.json`.
        tensors: the weights.
        notes: where its files say different things: which one was taken, a line each.
        tokenizer: the folder of its tokenizer, where that is another.
        template: the folder of its chat template, where that is another.
        origin: the GGUF that it was read back from; None of a folder.
        metadata: that GGUF's keys, which a file made of the checkpoint takes over.
    """

    path: Path
    config: Mapping[str, Any]
    tensors: TensorSource
    notes: tuple[str, ...] = ()
    tokenizer: Path | None = None
    template: Path | None = None
    origin: Path | None = None
    metadata: Mapping[str, Value] | None = None

    @property
    def weight_count(self) -> int:
        """Weights of all tensors."""
        return sum(prod(spec.shape) for spec in self.tensors.specs.values())


@runtime_checkable
class ReadByRows(Protocol):
    """A mapping of arrays that gives some rows without making a whole array."""

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """As `TensorSource.read_rows`."""
        ...


@dataclass(frozen=True)
class _OverriddenSpecs(Mapping[str, TensorSpec]):
    """Specs of `base`, those of replaced tensors as `f32`: found one by one, as one is asked for at a time."""

    base: Mapping[str, TensorSpec]
    replaced: Container[str]

    def __getitem__(self, name: str) -> TensorSpec:
        spec = self.base[name]
        return TensorSpec(name, spec.shape, "f32") if name in self.replaced else spec

    def __contains__(self, name: object) -> bool:
        return name in self.base

    def __iter__(self) -> Iterator[str]:
        return iter(self.base)

    def __len__(self) -> int:
        return len(self.base)


@dataclass(frozen=True)
class OverriddenTensors:
    """A source in which some tensors are replaced: what a pass gives back. Does not modify `base`.

    Attributes:
        base: the source below.
        replaced: name → float32 array of the same shape.
    """

    base: TensorSource
    replaced: Mapping[str, NDArray[np.float32]]

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The specs of `base`; replaced tensors are `f32`."""
        return _OverriddenSpecs(self.base.specs, self.replaced)

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """As `TensorSource.read_rows`."""
        if name not in self.replaced:
            return self.base.read_rows(name, start, stop)
        if isinstance(self.replaced, ReadByRows):
            return self.replaced.rows(name, start, stop)
        array = self.replaced[name]
        return np.array(array.reshape(-1, array.shape[-1])[start:stop], dtype=np.float32)
