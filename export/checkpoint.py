"""Opens a Hugging Face folder as named lazy tensors with a configuration; it reads no weights.

What the tensors mean is left to `export.architectures`, the tokenizer to `export.tokenizer`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from edgepack.errors import CheckpointError
from edgepack.export.formats.quantized_checkpoint import dequantized
from edgepack.export.formats.safetensors_file import SafetensorsFile
from edgepack.model import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from edgepack.export.formats.packed import RawTensors
    from edgepack.export.formats.torch_file import TorchFile
    from edgepack.model import TensorSpec

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_TORCH_SINGLE = "pytorch_model.bin"
_TORCH_INDEX = "pytorch_model.bin.index.json"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: absent, unreadable, not JSON or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: file not found") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


@dataclass(frozen=True)
class ShardedTensors:
    """Tensors spread over several files: a `TensorSource`.

    Attributes:
        files: tensor name → the open file that holds it.
    """

    files: Mapping[str, SafetensorsFile | TorchFile]

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Every tensor, in the index's order."""
        return {name: file.specs_of(name) for name, file in self.files.items()}

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """As `TensorSource.read_rows`."""
        return self.files[name].read_rows(name, start, stop)

    def read_bytes(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """As `SafetensorsFile.read_bytes`."""
        return self.files[name].read_bytes(name, start, stop)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open the Hugging Face folder `path`; only headers are read.

    Raises:
        CheckpointError: the folder, its configuration or a shard is missing, truncated or inconsistent.
    """
    if not path.is_dir():
        raise CheckpointError(f"model '{path}': expected a folder with config.json and safetensors, found none")
    config = _with_quantization(read_json(path / "config.json"), path)
    tensors = dequantized(_open_tensors(path), config)
    return Checkpoint(path, config, tensors)


def _with_quantization(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The configuration, with what older GPTQ and AWQ checkpoints keep in a file of their own."""
    for name in ("quantize_config.json", "quant_config.json"):
        if "quantization_config" not in config and (folder / name).is_file():
            method = "gptq" if name.startswith("quantize") else "awq"
            return {**config, "quantization_config": {"quant_method": method, **read_json(folder / name)}}
    return config


def _open_tensors(folder: Path) -> RawTensors:
    for index in (folder / _INDEX, folder / _TORCH_INDEX):
        if index.is_file():
            return _open_shards(folder, index)
    for name in (_SINGLE, _TORCH_SINGLE):
        if (folder / name).is_file():
            return _open_file(folder / name)
    raise CheckpointError(f"{folder}: no weights: expected {_SINGLE} or {_INDEX}")


def _open_file(path: Path) -> SafetensorsFile | TorchFile:
    if path.suffix != ".bin":
        return SafetensorsFile(path)
    from edgepack.export.formats.torch_file import TorchFile

    return TorchFile(path)


def _open_shards(folder: Path, index: Path) -> ShardedTensors:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: expected a 'weight_map' object that names a file for each tensor")
    opened: dict[str, SafetensorsFile | TorchFile] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name:
            raise CheckpointError(f"{index}: tensor '{tensor}': expected a file name in this folder, got {name!r}")
        if name not in opened:
            if not (folder / name).is_file():
                raise CheckpointError(f"{index}: tensor '{tensor}' is in '{name}', which is absent")
            opened[name] = _open_file(folder / name)
        opened[name].specs_of(tensor)
    return ShardedTensors({tensor: opened[name] for tensor, name in weight_map.items()})
