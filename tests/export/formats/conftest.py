"""Tensors in memory as a checkpoint stores them, and small weights to pack."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edgepack.export.formats.quantized_checkpoint import dequantized
from edgepack.export.formats.safetensors_file import SafetensorsFile
from edgepack.model import read_tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


@pytest.fixture
def weight() -> torch.Tensor:
    """A weight of 24 outputs and 192 inputs, neither of them square nor a power of two."""
    return torch.randn(24, 192, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def read_back(tmp_path: Path) -> Callable[[Mapping[str, torch.Tensor], object], np.ndarray]:
    """(stored tensors, quantization_config) → the weight called `layer.weight`, read whole and by odd chunks."""

    def read(tensors: Mapping[str, torch.Tensor], config: object) -> np.ndarray:
        path = tmp_path / "model.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        source = dequantized(SafetensorsFile(path), {"quantization_config": config} if config else {})
        whole = read_tensor(source, "layer.weight")
        assert whole.dtype == np.float32
        rows = source.specs["layer.weight"].rows
        chunks = [source.read_rows("layer.weight", at, min(at + 7, rows)) for at in range(0, rows, 7)]
        np.testing.assert_array_equal(np.concatenate(chunks), whole)
        assert set(source.specs) == {"layer.weight"}
        return whole

    return read
