"""Quantisation settings and adapter settings with any value replaced by any other: read, or one of our errors."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from edgepack.errors import EdgepackError
from edgepack.export.checkpoint import open_checkpoint
from edgepack.export.formats.quantized_checkpoint import dequantized
from edgepack.export.formats.safetensors_file import SafetensorsFile
from edgepack.export.lora.adapter import read_adapter
from edgepack.model import read_tensor

WORDS, SCALES = torch.zeros(64, 8, dtype=torch.int32), torch.ones(1, 64, dtype=torch.float16)
STATE = json.dumps({"quant_type": "nf4", "blocksize": 64, "shape": [64, 64], "nested_blocksize": 256}).encode()
SCHEME = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64}
FORMATS: dict[str, tuple[dict[str, Any], dict[str, torch.Tensor]]] = {
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm"},
        {"qweight": WORDS, "qzeros": WORDS[:1], "scales": SCALES},
    ),
    "gptq": (
        {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": True, "checkpoint_format": "gptq"},
        {"qweight": WORDS.reshape(8, 64), "qzeros": WORDS[:1], "scales": SCALES,
         "g_idx": torch.zeros(64, dtype=torch.int32)},
    ),
    "bitsandbytes": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"weight": torch.zeros(2048, 1, dtype=torch.uint8), "weight.absmax": torch.ones(64),
         "weight.quant_map": torch.ones(16),
         "weight.quant_state.bitsandbytes__nf4": torch.frombuffer(bytearray(STATE), dtype=torch.uint8)},
    ),
    "bitnet": (
        {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline",
         "modules_to_not_convert": None, "use_rms_norm": False},
        {"weight": torch.zeros(16, 64, dtype=torch.uint8), "weight_scale": torch.ones(1)},
    ),
    "fp8": (
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        {"weight": torch.zeros(64, 64).to(torch.float8_e4m3fn), "weight_scale_inv": torch.ones(1, 1)},
    ),
    "compressed-tensors": (
        {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"g": {"weights": SCHEME}}},
        {"weight_packed": WORDS, "weight_scale": SCALES.reshape(64, 1), "weight_shape": torch.tensor([64, 64])},
    ),
}  # fmt: skip
ADAPTER = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {"q_proj": 2}, "use_rslora": False}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 1 << 40) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def changed(value: dict[str, Any], data: st.DataObject) -> dict[str, Any]:
    """A copy with one value, at any depth, replaced."""
    result = copy.deepcopy(value)
    target = result
    while True:
        key = data.draw(st.sampled_from(sorted(target)))
        if not isinstance(target[key], dict) or not target[key] or data.draw(st.booleans()):
            target[key] = data.draw(JSON)
            return result
        target = target[key]


@pytest.fixture
def source(tmp_path):
    def open_format(kind: str) -> SafetensorsFile:
        path = tmp_path / f"{kind}.safetensors"
        tensors = FORMATS[kind][1].items()
        if not path.exists():
            save_file({f"layer.{name}": tensor.clone().contiguous() for name, tensor in tensors}, path)
        return SafetensorsFile(path)

    return open_format


@pytest.mark.parametrize("kind", FORMATS)
def test_the_untouched_settings_are_read(kind, source):
    tensors = dequantized(source(kind), {"quantization_config": FORMATS[kind][0]})
    assert read_tensor(tensors, "layer.weight").shape == (64, 64)


@pytest.mark.parametrize("kind", FORMATS)
@FUZZ
@given(data=st.data())
def test_no_quantisation_setting_makes_it_fail_otherwise(kind, source, data):
    config = {"quantization_config": changed(FORMATS[kind][0], data)}
    try:
        tensors = dequantized(source(kind), config)
        for name, spec in tensors.specs.items():
            if spec.dtype not in {"i32", "i64", "u8"}:
                assert read_tensor(tensors, name).shape == spec.shape
    except EdgepackError as error:
        assert "\n" not in str(error)  # noqa: PT017


@FUZZ
@given(data=st.data())
def test_no_adapter_setting_makes_it_fail_otherwise(tmp_path, books, data):
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file(
        {f"{prefix}.lora_A.weight": torch.ones(2, 256), f"{prefix}.lora_B.weight": torch.ones(256, 2)},
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps(changed(ADAPTER, data)))
    try:
        assert read_adapter(tmp_path, open_checkpoint(books).tensors).low_rank
    except EdgepackError as error:
        assert "\n" not in str(error)  # noqa: PT017
