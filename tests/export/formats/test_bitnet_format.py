"""BitNet's packing: what transformers packs is read back digit by digit, and llama.cpp's ternary types hold it exactly."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
import torch
from references.tiny_checkpoints import TinyModel, random_model, write_checkpoint
from safetensors.torch import load_file, save_file

from edgepack.errors import CheckpointError, UnsupportedModelError
from edgepack.export.gguf_file import write_gguf
from edgepack.export.mapped_model import open_model
from edgepack.export.plan import plan_export
from edgepack.quant.types.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Read = Callable[[Mapping[str, torch.Tensor], object], np.ndarray]

SCALE = 0.7109375  # a number of half precision, as the files' scales are of bfloat16


def digits(rows: int, columns: int, seed: int = 3) -> torch.Tensor:
    return torch.randint(-1, 2, (rows, columns), generator=torch.Generator().manual_seed(seed)).float()


def pack_weights(weight: torch.Tensor) -> torch.Tensor:
    """As transformers' function of that name, which compiles itself when it is imported."""
    quarters = (weight + 1).to(torch.uint8).reshape(4, -1, weight.shape[1])
    return quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6


def settings(**changes: str) -> dict[str, Any]:
    return {"quant_method": "bitnet", **changes}


def packed(weight: torch.Tensor, scale: float = SCALE) -> dict[str, torch.Tensor]:
    return {
        "layer.weight": pack_weights(weight),
        "layer.weight_scale": torch.tensor([scale], dtype=torch.bfloat16),
    }


def test_bitlinear_divides_by_its_scale_and_autobitlinear_multiplies(read_back: Read) -> None:
    weight = digits(24, 96)
    divided = read_back(packed(weight), settings())
    np.testing.assert_array_equal(divided, weight.numpy() * (np.float32(1) / np.float32(SCALE)))
    multiplied = read_back(packed(weight), settings(linear_class="autobitlinear"))
    np.testing.assert_array_equal(multiplied, weight.numpy() * np.float32(SCALE))


def test_online_weights_are_rounded_as_while_training(read_back: Read, weight: torch.Tensor) -> None:
    read = read_back({"layer.weight": weight}, settings(linear_class="autobitlinear", quantization_mode="online"))
    scale = weight.abs().mean()
    np.testing.assert_allclose(read, ((weight / scale).round().clamp(-1, 1) * scale).numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("tensors", "changes", "message"),
    [
        ({"layer.weight": torch.full((6, 8), 255, dtype=torch.uint8)}, {}, "expected digits 0, 1 and 2, got 3"),
        ({"layer.weight": torch.zeros(6, dtype=torch.uint8)}, {}, "of shape .*, got u8"),
        ({"layer.weight_scale": torch.zeros(1)}, {}, "expected a number other than 0, got 0"),
        ({"layer.weight_scale": torch.ones(2)}, {}, "expected one number beside"),
        ({}, {"linear_class": "trilinear"}, "expected linear_class bitlinear or autobitlinear"),
        ({}, {"modules_to_not_convert": "x", "linear_class": "autobitlinear", "quantization_mode": "online"}, "names"),
    ],
)
def test_what_contradicts_itself_is_refused(
    tensors: dict[str, torch.Tensor], changes: dict[str, str], message: str, read_back: Read
) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_back(packed(digits(24, 8)) | tensors, settings(**changes))


def test_a_norm_in_a_projection_is_refused(read_back: Read) -> None:
    with pytest.raises(UnsupportedModelError, match="use_rms_norm is true"):
        read_back(packed(digits(24, 8)), {**settings(), "use_rms_norm": True})


def ternary_llama(folder: Path, tokenizer: Path) -> dict[str, torch.Tensor]:
    """A tiny Llama whose projections are packed; gives their digits back."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_key_value_heads": 4, "num_hidden_layers": 1}
    write_checkpoint(random_model(TinyModel("ternary", "Llama", sizes)), folder, tokenizer)
    stored, kept = {}, {}
    for seed, (name, tensor) in enumerate(load_file(folder / "model.safetensors").items()):
        stored[name] = tensor
        if "proj" in name:
            kept[name] = digits(*tensor.shape, seed=seed)
            stored[name] = pack_weights(kept[name])
            stored[name + "_scale"] = torch.tensor([SCALE], dtype=torch.bfloat16)
    save_file(stored, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    quantised = settings(linear_class="autobitlinear")
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantised}))
    return kept


@pytest.mark.parametrize("target", ["TQ1_0", "TQ2_0"])
def test_ternary_types_hold_every_digit_and_the_scale(target: str, books: Path, tmp_path: Path) -> None:
    kept = ternary_llama(tmp_path / "model", books)
    write_gguf(plan_export(open_model(tmp_path / "model"), find_target(target)), tmp_path / "model.gguf")
    written = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    for ours, theirs in (("ffn_down", "mlp.down_proj"), ("ffn_up", "mlp.up_proj"), ("attn_v", "self_attn.v_proj")):
        tensor = written[f"blk.0.{ours}.weight"]
        assert tensor.tensor_type.name == target
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        expected = kept[f"model.layers.0.{theirs}.weight"].numpy() * np.float32(SCALE)
        np.testing.assert_array_equal(values, expected)
