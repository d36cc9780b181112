"""Quantisation that differs from module to module, and scales that could be read in two ways."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.utils.match import match_targets
from safetensors.torch import save_file

from edgepack.errors import CheckpointError, UnsupportedModelError
from edgepack.export.formats.by_module import Groups, auto_round_settings, gptqmodel_settings
from edgepack.export.formats.float8 import find_layout
from edgepack.export.formats.quantized_checkpoint import dequantized
from edgepack.export.formats.safetensors_file import SafetensorsFile
from edgepack.model import read_tensor

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.model import TensorSource

DOWN, UP = "model.layers.0.mlp.down_proj", "model.layers.0.mlp.up_proj"


def pack(values: np.ndarray, bits: int) -> torch.Tensor:
    """Bit fields down the first axis, int32."""
    stream = (values[:, None, :] >> np.arange(bits)[None, :, None]) & 1
    flat = stream.reshape(-1, values.shape[1])
    words = flat.reshape(-1, 32, values.shape[1]).astype(np.uint64)
    return torch.from_numpy(
        (words << np.arange(32, dtype=np.uint64)[None, :, None]).sum(1).astype(np.uint32).view(np.int32)
    )


def gptq(module: str, bits: int, group: int, *, offset: int = 1) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """A packed weight [32 out, 64 in] and what it means."""
    rng = np.random.default_rng(bits * group)
    scales = rng.uniform(0.01, 0.02, (64 // group, 32)).astype(np.float16)
    zeros = rng.integers(1, 2**bits - 1, (64 // group, 32))
    codes = rng.integers(0, 2**bits, (64, 32))
    of = np.arange(64) // group
    stored = {
        f"{module}.qweight": pack(codes, bits),
        f"{module}.qzeros": pack((zeros - offset).T, bits).T.contiguous(),
        f"{module}.scales": torch.from_numpy(scales),
    }
    return stored, ((codes - zeros[of]) * scales.astype(np.float32)[of]).T


def opened(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> TensorSource:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return dequantized(SafetensorsFile(folder / "model.safetensors"), {"quantization_config": config})


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}


@pytest.mark.parametrize(
    "dynamic",
    [
        {"+:.*down_proj.*": {"bits": 8}},
        {".*down_proj.*": {"bits": 8}},
        {"-:.*lm_head": {}, r"+:model\.layers\.0\.mlp\.down": {"bits": 8}},
        {"+:.*down_proj": {"bits": 8}, "+:.*": {"bits": 4}},
        {DOWN: {"bits": 8, "group_size": 32}},
    ],
)
def test_gptqmodels_first_matching_pattern_gives_the_bits(tmp_path: Path, dynamic: dict) -> None:
    up, up_weight = gptq(UP, 4, 32)
    down, down_weight = gptq(DOWN, 8, 32)
    source = opened(tmp_path, up | down, {**GPTQ, "dynamic": dynamic})
    np.testing.assert_allclose(read_tensor(source, f"{UP}.weight"), up_weight, rtol=1e-6)
    np.testing.assert_allclose(read_tensor(source, f"{DOWN}.weight"), down_weight, rtol=1e-6)


def test_gptqmodels_groups_and_zero_points_differ_too(tmp_path: Path) -> None:
    up, up_weight = gptq(UP, 4, 64)
    down, down_weight = gptq(DOWN, 4, 16, offset=0)
    dynamic = {"down_proj": {"bits": 8}, "+:.*down_proj": {"group_size": 16, "checkpoint_format": "gptq_v2"}}
    source = opened(tmp_path, up | down, {**GPTQ, "group_size": -1, "dynamic": dynamic})
    np.testing.assert_allclose(read_tensor(source, f"{UP}.weight"), up_weight, rtol=1e-6)
    np.testing.assert_allclose(read_tensor(source, f"{DOWN}.weight"), down_weight, rtol=1e-6)


def test_a_pattern_begins_where_the_name_begins() -> None:
    assert gptqmodel_settings({"bits": 4, "dynamic": {"+:down_proj": {"bits": 8}}}, DOWN)["bits"] == 4
    assert gptqmodel_settings({"bits": 4, "dynamic": {f"-:{DOWN}": {"bits": 8}}}, DOWN)["bits"] == 4


@pytest.mark.parametrize(("packing", "offset"), [("auto_round:auto_gptq", 1), ("auto_round:gptq", 1), (None, 1),
                                                 ("auto_round:gptqmodel", 0), ("auto_round", 0)])  # fmt: skip
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_auto_rounds_own_settings_of_a_layer_count(tmp_path: Path, packing: str | None, offset: int, bits: int) -> None:
    up, up_weight = gptq(UP, 4, 32, offset=offset)
    down, down_weight = gptq(DOWN, bits, 16, offset=offset)
    config = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": False, "data_type": "int",
              "extra_config": {DOWN: {"bits": bits, "group_size": 16}}} | ({"packing_format": packing} if packing else {})  # fmt: skip
    source = opened(tmp_path, up | down, config)
    np.testing.assert_allclose(read_tensor(source, f"{UP}.weight"), up_weight, rtol=1e-6)
    np.testing.assert_allclose(read_tensor(source, f"{DOWN}.weight"), down_weight, rtol=1e-6)


def test_auto_rounds_patterns_are_searched_behind_exact_names() -> None:
    config = {"bits": 4, "extra_config": {"mlp": {"bits": 2}, DOWN: {"bits": 8}}}
    assert auto_round_settings(config, DOWN)["bits"] == 8
    assert auto_round_settings(config, UP)["bits"] == 2
    assert auto_round_settings(config, "lm_head")["bits"] == 4


@pytest.mark.parametrize(
    ("change", "needle"),
    [
        ({"packing_format": "auto_round:nv_fp4"}, "nv_fp4"),
        ({"data_type": "mx_fp"}, "mx_fp"),
        ({"extra_config": {"(": {"bits": 2}}}, "regular expression"),
        ({"extra_config": [1]}, "extra_config"),
        ({"dynamic": {"+:(": {"bits": 2}}}, "regular expression"),
    ],
)
def test_what_auto_round_cannot_be_read_as_is_named(tmp_path: Path, change: dict, needle: str) -> None:
    with pytest.raises((CheckpointError, UnsupportedModelError), match=needle):
        opened(tmp_path, gptq(UP, 4, 32)[0], {"quant_method": "auto-round", "bits": 4, "group_size": 32, **change})


GROUPS = [
    {"a": ["Linear"]},
    {"a": ["Linear"], "b": ["re:.*down_proj"]},
    {"a": ["re:.*mlp.*"], "b": ["re:.*down_proj"], "c": ["Linear"]},
    {"a": ["re:.*"], "b": [DOWN]},
    {"a": ["Linear", UP], "b": ["re:.*layers.0.*"]},
]


@pytest.mark.parametrize("targets", GROUPS)
@pytest.mark.parametrize("module", [DOWN, UP, "model.layers.1.self_attn.q_proj", "lm_head"])
def test_a_modules_group_is_the_librarys(targets: dict, module: str) -> None:
    groups = {name: {"targets": names, "weights": {"num_bits": 4 + i, "group_size": 16, "strategy": "group"}}
              for i, (name, names) in enumerate(targets.items())}  # fmt: skip
    config = QuantizationConfig.model_validate({"config_groups": groups, "quant_method": "compressed-tensors"})
    by_target = {target: group for group in config.config_groups.values() for target in group.targets}
    expected = by_target[match_targets(module, torch.nn.Linear(1, 1), by_target)[0]]
    ours = Groups({"config_groups": groups, "format": "pack-quantized"}).of(module)
    assert ours.weights["num_bits"] == expected.weights.num_bits


def test_groups_that_differ_are_read_by_their_own_formats(tmp_path: Path) -> None:
    weight = torch.randn(32, 64)
    codes, scale = weight.to(torch.float8_e4m3fn), torch.rand(32, 1)
    ints, int_scale, zero = (
        torch.randint(-128, 127, (32, 64), dtype=torch.int8),
        torch.rand(32, 2),
        torch.randint(-8, 8, (32, 2), dtype=torch.int8),
    )
    config = {
        "quant_method": "compressed-tensors", "format": "mixed-precision",
        "config_groups": {
            "a": {"targets": ["re:.*up_proj"], "format": "float-quantized", "weights": {"num_bits": 8, "type": "float", "strategy": "channel"}},
            "b": {"targets": ["re:.*down_proj"], "format": "int-quantized", "weights": {"num_bits": 8, "type": "int", "strategy": "group", "group_size": 32, "symmetric": False}},
        },
    }  # fmt: skip
    stored = {f"{UP}.weight": codes, f"{UP}.weight_scale": scale, f"{DOWN}.weight": ints,
              f"{DOWN}.weight_scale": int_scale, f"{DOWN}.weight_zero_point": zero}  # fmt: skip
    source = opened(tmp_path, stored, config)
    np.testing.assert_allclose(read_tensor(source, f"{UP}.weight"), (codes.float() * scale).numpy(), rtol=1e-6)
    wide = [each.float().repeat_interleave(32, 1) for each in (zero, int_scale)]
    np.testing.assert_allclose(
        read_tensor(source, f"{DOWN}.weight"), ((ints.float() - wide[0]) * wide[1]).numpy(), rtol=1e-5
    )
    assert set(source.specs) == {f"{UP}.weight", f"{DOWN}.weight"}


def test_groups_that_differ_only_in_the_observer_are_one(tmp_path: Path) -> None:
    weights = {"num_bits": 8, "type": "float", "strategy": "channel"}
    config = {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {
        "a": {"targets": ["re:.*up_proj"], "weights": {**weights, "observer": "minmax"}},
        "b": {"targets": ["re:.*gate_proj"], "weights": {**weights, "observer": "mse"}}}}  # fmt: skip
    codes, scale = torch.randn(32, 64).to(torch.float8_e4m3fn), torch.rand(32, 1)
    source = opened(tmp_path, {f"{DOWN}.weight": codes, f"{DOWN}.weight_scale": scale}, config)
    np.testing.assert_allclose(read_tensor(source, f"{DOWN}.weight"), (codes.float() * scale).numpy(), rtol=1e-6)


@pytest.mark.parametrize("block", [[8, 8], [16, 16], [32, 32], [16, 32], [1, 8], [64, 4]])
@pytest.mark.parametrize("shape", [(64, 64), (64, 256), (128, 16), (60, 100), (8, 64), (3, 64, 256)])
def test_a_named_block_decides_however_many_scales_there_are(tmp_path: Path, block: list[int], shape: tuple) -> None:
    codes = torch.randn(shape).to(torch.float8_e4m3fn)
    rows, columns = shape[-2:]
    scale = torch.rand(*shape[:-2], -(-rows // block[0]), -(-columns // block[1])) + 0.5
    whole = scale.repeat_interleave(block[0], -2).repeat_interleave(block[1], -1)[..., :rows, :columns]
    config = {"quant_method": "fp8", "weight_block_size": block}
    source = opened(tmp_path, {f"{UP}.weight": codes, f"{UP}.weight_scale_inv": scale}, config)
    np.testing.assert_allclose(read_tensor(source, f"{UP}.weight"), (codes.float() * whole).numpy(), rtol=1e-6)


@pytest.mark.parametrize("name", ["weight_scale_inv", "weight_scale", "scale", "qscale_weight"])
@pytest.mark.parametrize("kind", ["float", "e8m0 bytes"])
def test_scales_stand_under_every_name_that_transformers_reads(tmp_path: Path, name: str, kind: str) -> None:
    codes = torch.randn(32, 64).to(torch.float8_e4m3fn)
    exponents = torch.randint(120, 130, (2, 4), dtype=torch.uint8)
    factors = torch.exp2(exponents.float() - 127)
    stored = {f"{UP}.weight": codes, f"{UP}.{name}": exponents if kind == "e8m0 bytes" else factors}
    source = opened(tmp_path, stored, {"quant_method": "fp8", "weight_block_size": [16, 16]})
    whole = factors.repeat_interleave(16, 0).repeat_interleave(16, 1)
    np.testing.assert_allclose(read_tensor(source, f"{UP}.weight"), (codes.float() * whole).numpy(), rtol=1e-6)
    assert set(source.specs) == {f"{UP}.weight"}


@pytest.mark.parametrize(
    ("weight", "scale", "block", "kind"),
    [
        ((64, 64), (8, 8), [8, 8], "block"), ((64, 64), (64,), [8, 8], "row"), ((64, 64), (64, 1), None, "row"),
        ((64, 64), (), [8, 8], "tensor"), ((4, 64, 64), (4,), None, "matrix"), ((4, 64, 64), (4, 1, 1), None, "matrix"),
        ((4, 64, 64), (4, 64), None, "row"), ((64, 64), (2, 8), None, "block"), ((64, 64), (64, 1), [1, 64], "block"),
    ],
)  # fmt: skip
def test_what_a_scale_serves(weight: tuple, scale: tuple, block: list[int] | None, kind: str) -> None:
    assert find_layout(weight, scale, block, "x").kind == kind


@pytest.mark.parametrize("scale", [(8, 4), (7, 8), (64, 64, 1), (8, 8, 1), (16, 16), (0, 8)])
def test_a_scale_that_fits_nothing_is_refused(scale: tuple) -> None:
    with pytest.raises(CheckpointError, match=re.escape("blocks of [8, 8]")):
        find_layout((64, 64), scale, [8, 8], "x")


def test_a_weight_of_8_bit_floats_that_lacks_its_scale_is_refused(tmp_path: Path) -> None:
    codes = torch.randn(32, 64).to(torch.float8_e4m3fn)
    with pytest.raises(CheckpointError, match="expected a scale"):
        opened(tmp_path, {f"{UP}.weight": codes}, {"quant_method": "fp8", "weight_block_size": [16, 16]})
