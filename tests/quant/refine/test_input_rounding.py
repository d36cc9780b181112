"""The rounding of what matrices read: against what ggml's own quantiser does to the same activations."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from typing import TYPE_CHECKING

import torch
from tests.tiny_llama import write_tiny

from edgepack.export.checkpoint import open_checkpoint
from edgepack.gguf.types import GGMLType
from edgepack.quant.calibration.blocks import whole_model
from edgepack.quant.codecs.ggml.codec import dequantize_rows, quantize_rows
from edgepack.quant.refine.input_rounding import measure_input_rounding

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "m", hidden_size=64, intermediate_size=96, head_dim=32)


def test_errors_are_those_of_ggml_s_blocks_of_32(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    tokens = np.random.default_rng(0).integers(0, 40, (2, 16))
    found = measure_input_rounding(checkpoint, tokens)
    model, seen = whole_model(checkpoint), dict[str, torch.Tensor]()
    for path, module in model.named_modules():
        if path.endswith(("q_proj", "down_proj", "lm_head")):
            module.register_forward_pre_hook(
                lambda _m, args, path=path: seen.update({path: args[0].reshape(-1, args[0].shape[-1])})
            )
    with torch.no_grad():
        model(torch.from_numpy(tokens))
    for path, inputs in seen.items():
        rows = np.ascontiguousarray(inputs.numpy())
        blocks = quantize_rows(GGMLType.Q8_0, rows, quantizer="ggml")
        errors = np.square(dequantize_rows(GGMLType.Q8_0, blocks, *rows.shape) - rows).mean(0)
        known = found[f"{path}.weight"]
        np.testing.assert_allclose(known.errors[32], errors, rtol=0.1, atol=errors.mean() * 0.02, err_msg=path)
        assert known.mean_square == pytest.approx(float(np.square(rows).mean()), rel=1e-4)
        assert set(known.errors) == {32}


def test_every_linear_and_the_head_are_watched(folder: Path) -> None:
    found = measure_input_rounding(open_checkpoint(folder), np.arange(32, dtype=np.int64).reshape(1, 32))
    assert len(found) == 2 * 7 + 1
    assert "lm_head.weight" in found
