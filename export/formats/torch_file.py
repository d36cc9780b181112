"""Reads `pytorch_model*.bin` through torch's restricted unpickler: tensors only, never code.

The one module of export that needs torch, imported only for such files; safetensors need none.
"""

from __future__ import annotations

import pickle
import struct
import tarfile
import warnings
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import CheckpointError, DependencyError
from edgepack.file_kinds import HEAD_BYTES, describe, is_pointer
from edgepack.files.source import open_source
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

    def __reduce__(self) -> tuple[type[TorchFile], tuple[Path]]:
        """Another process opens the file anew, under the same name."""
        return TorchFile, (self.path,)

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
        rows = _rows(self._tensors[name], spec.columns, start, stop)
        return np.array(rows.float().numpy(), dtype=np.float32)

    def read_bytes(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """Bytes `start` (included) to `stop` (not included) of a tensor; uint8, owned by the caller."""
        import torch

        spec, tensor = self.specs_of(name), self._tensors[name]
        row_bytes = max(1, spec.columns * tensor.element_size())
        first = start // row_bytes
        rows = _rows(tensor, spec.columns, first, min(spec.rows, -(-stop // row_bytes)))
        flat = rows.contiguous().reshape(-1).view(torch.uint8)
        return np.array(flat[start - first * row_bytes : stop - first * row_bytes].numpy(), dtype=np.uint8)

    def _spec(self, name: str, tensor: Any) -> TensorSpec:
        kind = str(tensor.dtype).removeprefix("torch.")
        if kind not in _DTYPES:
            raise CheckpointError(f"{self.path}: tensor '{name}': unknown dtype '{kind}'")
        return TensorSpec(name, tuple(tensor.shape), _DTYPES[kind])


# Whatever torch.load may raise over a file that is cut off, altered or of another program.
_NOT_A_FILE = (
    OSError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError,
    AssertionError, ImportError, MemoryError, SystemError, struct.error, zipfile.BadZipFile, tarfile.TarError,
)  # fmt: skip


def _load(path: Path) -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        raise DependencyError(f"{path}: .bin files need torch: pip install 'edgepack[compress]'") from None
    try:
        with open_source(path, CheckpointError) as stream:
            head = stream.read(HEAD_BYTES)
        if is_pointer(head):
            raise CheckpointError(f"{path}: expected a PyTorch file, got {describe(head)}")
        is_zip = head.startswith(b"PK")  # only torch's zip format can be mapped
        with warnings.catch_warnings():  # about pickle protocols: what is not understood is refused anyway
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip or None)
    except pickle.UnpicklingError as error:
        refusal = f"{path}: expected tensors and nothing else, the unpickler refused: {_first_line(error)}"
        raise CheckpointError(refusal) from None
    except _NOT_A_FILE as error:
        raise CheckpointError(f"{path}: not a PyTorch file: {_first_line(error)}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a dictionary of tensors, got {type(content).__name__}")
    return {name: _plain(path, name, value) for name, value in content.items()}


def _plain(path: Path, name: Any, value: Any) -> Any:
    """A tensor without gradient, view bits or a class of its own; raises CheckpointError for what has no plain rows."""
    import torch

    what = f"{name!r}: {type(value).__name__}"
    if not isinstance(name, str) or not isinstance(value, torch.Tensor):
        nested = f"; its tensors lie below {name!r}" if isinstance(value, dict) else ""
        raise CheckpointError(f"{path}: expected names with dense tensors, got {what}{nested}")
    try:
        if value.is_meta:
            raise CheckpointError(f"{path}: tensor '{name}' has no weights: it was saved from device 'meta'")
        if value.layout is not torch.strided or value.is_nested or value.is_quantized:
            kind = "quantised" if value.is_quantized else "nested" if value.is_nested else str(value.layout)
            raise CheckpointError(f"{path}: expected names with dense tensors, got {what}, {kind}")
        return value.detach().resolve_conj().resolve_neg()
    except (RuntimeError, NotImplementedError, TypeError) as error:
        raise CheckpointError(f"{path}: tensor '{name}': {_first_line(error)}") from None


def _rows(tensor: Any, columns: int, start: int, stop: int) -> Any:
    """Rows `start` to `stop` (not included) of all dimensions but the last, without a copy of the whole.

    A tensor that was expanded claims far more elements than it holds.
    """
    import torch

    if tensor.dim() < 2 or tensor.is_contiguous():
        return tensor.reshape(-1, columns)[start:stop]
    if tensor.dim() == 2:
        return tensor[start:stop]
    height = tensor[0].numel() // columns
    parts = [
        _rows(tensor[index], columns, max(start - index * height, 0), min(stop - index * height, height))
        for index in range(start // height, -(-stop // height))
    ]
    return torch.cat(parts) if parts else tensor.new_empty((0, columns))


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][:300]
