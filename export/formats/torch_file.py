"""Reads `pytorch_model*.bin` through torch's restricted unpickler: tensors only, never code.

The one module of export that needs torch, imported only for such files; safetensors need none.
"""

from __future__ import annotations

import pickle
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import CheckpointError, DependencyError
from edgepack.model import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

_DTYPES = {
    "float64": "f64",
    "float32": "f32",
    "float16": "f16",
    "bfloat16": "bf16",
    "float8_e4m3fn": "f8_e4m3",
    "float8_e5m2": "f8_e5m2",
    "int64": "i64",
    "int32": "i32",
    "int16": "i16",
    "int8": "i8",
    "uint8": "u8",
    "bool": "bool",
}


class TorchFile:
    """One `.bin` file: a `TensorSource` that also gives raw bytes. Tensors stay on disk where the format allows.

    Args:
        path: the file.

    Raises:
        DependencyError: torch is not installed.
        CheckpointError: not a file of tensors; in particular a pickle with code in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tensors = _load(path)
        self._specs = {name: self._spec(name, tensor) for name, tensor in self._tensors.items()}

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Every tensor, in the file's order."""
        return self._specs

    def specs_of(self, name: str) -> TensorSpec:
        """The spec of one tensor; raises CheckpointError when there is none."""
        if name not in self._specs:
            raise CheckpointError(f"{self.path}: no tensor '{name}'")
        return self._specs[name]

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """As `TensorSource.read_rows`; raises CheckpointError for integers and 8-bit floats."""
        spec = self.specs_of(name)
        if spec.dtype not in {"f64", "f32", "f16", "bf16"}:
            raise CheckpointError(f"{self.path}: tensor '{name}': expected floats, got {spec.dtype}")
        rows = self._tensors[name].reshape(-1, spec.columns)[start:stop]
        return np.array(rows.float().numpy(), dtype=np.float32)

    def read_bytes(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """Bytes `start` (included) to `stop` (not included) of a tensor; uint8, owned by the caller."""
        import torch

        self.specs_of(name)
        flat = self._tensors[name].contiguous().reshape(-1).view(torch.uint8)
        return np.array(flat[start:stop].numpy(), dtype=np.uint8)

    def _spec(self, name: str, tensor: Any) -> TensorSpec:
        kind = str(tensor.dtype).removeprefix("torch.")
        if kind not in _DTYPES:
            raise CheckpointError(f"{self.path}: tensor '{name}': unknown dtype '{kind}'")
        return TensorSpec(name, tuple(tensor.shape), _DTYPES[kind])


def _load(path: Path) -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        raise DependencyError(f"{path}: .bin files need torch: pip install 'edgepack[compress]'") from None
    try:
        with path.open("rb") as stream:
            is_zip = stream.read(2) == b"PK"  # only torch's zip format can be mapped
        with warnings.catch_warnings():  # about pickle protocols: what is not understood is refused anyway
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip or None)
    except pickle.UnpicklingError as error:
        refusal = f"{path}: expected tensors and nothing else, the unpickler refused: {_first_line(error)}"
        raise CheckpointError(refusal) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
        raise CheckpointError(f"{path}: not a PyTorch file: {_first_line(error)}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a dictionary of tensors, got {type(content).__name__}")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided:
            raise CheckpointError(f"{path}: expected names with dense tensors, got {name!r}: {type(tensor).__name__}")
    return content


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][:300]
