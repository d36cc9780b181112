"""Quantised checkpoints: hand-made words of known value, and the formats' own libraries, give the same weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgepack.errors import CheckpointError, UnsupportedModelError
from edgepack.export.checkpoint import open_checkpoint
from edgepack.export.formats.float8 import VALUES
from edgepack.export.formats.packed import unpack_words
from edgepack.export.mapped_model import open_model
from edgepack.export.plan import plan_export
from edgepack.model import read_tensor
from edgepack.quant.types.targets import find_target

AUTOAWQ = Path(__file__).resolve().parents[2] / "golden/awq/autoawq-0.2.9.safetensors"
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False}


def int32(words: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(words).astype(np.uint32).view(np.int32).copy())


def pack_awq(values: np.ndarray) -> torch.Tensor:
    """AutoAWQ's loop: field i of a word holds column order[i] of its eight."""
    words = np.zeros((len(values), values.shape[1] // 8), dtype=np.uint32)
    for column in range(words.shape[1]):
        for field, place in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
            words[:, column] |= values[:, column * 8 + place].astype(np.uint32) << np.uint32(4 * field)
    return int32(words)


def pack_bits(values: np.ndarray, bits: int) -> torch.Tensor:
    """Fields down the first axis as one little-endian stream of bits, by Python's big integers."""
    columns = []
    for column in values.T:
        stream = sum(int(value) << (bits * at) for at, value in enumerate(column))
        columns.append([(stream >> (32 * word)) & 0xFFFFFFFF for word in range(-(-len(column) * bits // 32))])
    return int32(np.array(columns).T)


def quantized(groups: int, shape: tuple[int, int], bits: int, seed: int = 3):
    """Random codes [in, out], zeros and scales [groups, out]."""
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 1 << bits, size=shape)
    zeros = generator.integers(1, 1 << bits, size=(groups, shape[1]))
    scales = torch.from_numpy(generator.uniform(0.01, 0.1, size=(groups, shape[1]))).half()
    return codes, zeros, scales


def test_a_known_awq_word_unpacks_to_its_columns_in_order(read_back):
    tensors = {
        "layer.qweight": int32(np.full((64, 1), 0x75316420)),
        "layer.qzeros": int32(np.zeros((1, 1))),
        "layer.scales": torch.ones(1, 8, dtype=torch.float16),
    }
    np.testing.assert_array_equal(read_back(tensors, AWQ), np.repeat(np.arange(8.0)[:, None], 64, axis=1))


def test_awq_weights_are_codes_less_zeros_times_scales(read_back):
    codes, zeros, scales = quantized(3, (192, 24), 4)
    tensors = {"layer.qweight": pack_awq(codes), "layer.qzeros": pack_awq(zeros), "layer.scales": scales}
    expected = (codes - np.repeat(zeros, 64, axis=0)) * np.repeat(scales.float().numpy(), 64, axis=0)
    np.testing.assert_allclose(read_back(tensors, AWQ), expected.T, rtol=1e-6)


@pytest.mark.parametrize("name", ["wide", "narrow"])
def test_what_autoawq_packed_reads_as_what_autoawq_unpacks(read_back, name):
    """Made by AutoAWQ's own code (tools/make_golden_awq.py); its product is rounded to float16, ours is exact."""
    golden = load_file(AUTOAWQ)
    parts = {f"layer.{part}": golden[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales")}
    weight = torch.from_numpy(read_back(parts, {**AWQ, "group_size": 128}))
    assert torch.equal(weight.half(), golden[f"{name}.dequantized"])
    steps = weight / golden[f"{name}.scales"].float().repeat_interleave(128, 0).T
    assert torch.equal(steps, steps.round())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("scattered", [False, True], ids=["in order", "desc_act"])
def test_gptq_weights_are_codes_less_zeros_times_scales(read_back, bits, version, scattered):
    codes, zeros, scales = quantized(3, (192, 32), bits)
    group_of = np.arange(192) // 64
    if scattered:
        group_of = np.random.default_rng(1).permutation(group_of)
    stored_zeros = zeros - 1 if version == "gptq" else zeros
    tensors = {
        "layer.qweight": pack_bits(codes, bits),
        "layer.qzeros": pack_bits(stored_zeros.T, bits).T,
        "layer.scales": scales,
        "layer.g_idx": torch.from_numpy(group_of.astype(np.int32)),
    }
    expected = (codes - zeros[group_of]) * scales.float().numpy()[group_of]
    config = {**GPTQ, "bits": bits, "checkpoint_format": version, "desc_act": scattered}
    np.testing.assert_allclose(read_back(tensors, config), expected.T, rtol=1e-6)


def test_fields_that_cross_words_are_whole():
    codes = np.random.default_rng(0).integers(0, 8, size=(32, 4))
    np.testing.assert_array_equal(unpack_words(pack_bits(codes, 3).numpy(), 3, 32), codes)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True], ids=["plain", "double"])
@pytest.mark.parametrize("shape", [(24, 192), (33, 65)])
def test_bitsandbytes_weights_equal_the_librarys(read_back, kind, nested, shape):
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    codes, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=nested, quant_type=kind)
    stored = {f"layer.weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    expected = functional.dequantize_4bit(codes, state).numpy()
    np.testing.assert_allclose(read_back({"layer.weight": codes, **stored}, config), expected, rtol=1e-5, atol=1e-7)


def test_int8_rows_are_scaled_by_their_maxima(read_back, weight):
    maxima = weight.abs().amax(dim=1)
    codes = (weight / maxima[:, None] * 127).round().to(torch.int8)
    expected = codes.float() * maxima[:, None] / 127
    stored = {"layer.weight": codes, "layer.SCB": maxima}
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    np.testing.assert_allclose(read_back(stored, config), expected.numpy(), rtol=1e-6)


@pytest.mark.parametrize(("ours", "kind"), [("f8_e4m3", torch.float8_e4m3fn), ("f8_e5m2", torch.float8_e5m2)])
def test_every_8_bit_float_equals_torchs(ours, kind):
    expected = torch.arange(256, dtype=torch.uint8).view(kind).float().numpy()
    np.testing.assert_array_equal(VALUES[ours], expected)


@pytest.mark.parametrize(
    "scale", [torch.tensor(0.5), torch.rand(24), torch.rand(24, 1)], ids=["tensor", "rows", "column"]
)
@pytest.mark.parametrize("suffix", ["scale", "scale_inv"])
def test_fp8_weights_are_values_times_scale(read_back, weight, scale, suffix):
    codes = weight.to(torch.float8_e4m3fn)
    stored = {"layer.weight": codes, "layer.input_scale": torch.tensor(2.0)}
    stored[f"layer.weight_{suffix}"] = scale
    factor = scale if scale.ndim != 1 else scale[:, None]
    expected = (codes.float() * factor).numpy()
    np.testing.assert_allclose(read_back(stored, {"quant_method": "fp8"}), expected, rtol=1e-6)


def test_fp8_blocks_cover_ragged_edges(read_back):
    codes = torch.randn(200, 300).to(torch.float8_e4m3fn)
    scale = torch.rand(2, 3)
    whole = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[:200, :300]
    stored = {"layer.weight": codes, "layer.weight_scale_inv": scale}
    config = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    np.testing.assert_allclose(read_back(stored, config), (codes.float() * whole).numpy(), rtol=1e-6)


def test_fp8_without_a_scale_is_read_as_it_is(read_back, weight):
    codes = weight.to(torch.float8_e5m2)
    np.testing.assert_array_equal(read_back({"layer.weight": codes}, None), codes.float().numpy())


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("strategy", ["group", "channel"])
def test_pack_quantized_weights_equal_the_librarys(read_back, weight, bits, symmetric, strategy):
    compressors = pytest.importorskip("compressed_tensors.compressors")
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    size = 64 if strategy == "group" else None
    args = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, strategy=strategy, group_size=size)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    groups = 3 if strategy == "group" else 1
    half = 1 << (bits - 1)
    grouped = weight.reshape(24, groups, -1)
    low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    scale = grouped.abs().amax(-1) / half if symmetric else (high - low) / (2 * half - 1)
    state = {"weight": weight, "weight_scale": scale}
    if not symmetric:
        state["weight_zero_point"] = (-half - low / scale).round().clamp(-half, half - 1).to(torch.int8)
    compressed = compressors.PackedQuantizationCompressor.compress(state, scheme)
    expected = compressors.PackedQuantizationCompressor.decompress(dict(compressed), scheme)["weight"]
    config = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": args.model_dump(mode="json")}},
    }
    stored = {f"layer.{name}": tensor for name, tensor in compressed.items()}
    np.testing.assert_allclose(read_back(stored, config), expected.float().numpy(), rtol=1e-5, atol=1e-7)


def test_a_whole_awq_checkpoint_opens_as_the_model_it_was(books, tmp_path):
    stored, steps = {}, {}
    for name, tensor in load_file(books / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            stored[name] = tensor
            continue
        groups = tensor.float().T.reshape(tensor.shape[1] // 64, 64, tensor.shape[0])
        scales = (groups.abs().amax(1) / 7).half()
        codes = (groups / scales[:, None] + 8).round().clamp(0, 15).reshape(tensor.shape[1], -1)
        prefix = name.removesuffix(".weight")
        stored[f"{prefix}.qweight"] = pack_awq(codes.numpy().astype(int))
        stored[f"{prefix}.qzeros"] = pack_awq(np.full(scales.shape, 8))
        stored[f"{prefix}.scales"] = scales
        steps[name] = scales.float().numpy()
    save_file(stored, tmp_path / "model.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(books / name, tmp_path)
    config = json.loads((books / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": AWQ}))
    ours, reference = open_checkpoint(tmp_path).tensors, open_checkpoint(books).tensors
    assert {name: spec.shape for name, spec in ours.specs.items()} == {
        name: spec.shape for name, spec in reference.specs.items()
    }
    for name, step in steps.items():
        bound = np.repeat(step, 64, axis=0).T * 0.51
        assert (np.abs(read_tensor(ours, name) - read_tensor(reference, name)) <= bound).all()
    mapped, direct = open_model(tmp_path), open_model(books)
    assert {name: rows.shape for name, rows in mapped.tensors.items()} == {
        name: rows.shape for name, rows in direct.tensors.items()
    }
    assert mapped.tensors["blk.0.attn_q.weight"].dtype == "awq4"
    assert plan_export(mapped, find_target("q4km")).infos == plan_export(direct, find_target("q4km")).infos


def awq_tensors() -> dict[str, torch.Tensor]:
    codes, zeros, scales = quantized(3, (192, 24), 4)
    return {"layer.qweight": pack_awq(codes), "layer.qzeros": pack_awq(zeros), "layer.scales": scales}


@pytest.mark.parametrize(
    ("change", "config", "needle"),
    [
        ({}, {"quant_method": "magic"}, "'magic' is not known"),
        ({}, {**AWQ, "version": "gemv"}, "gemv"),
        ({}, {**AWQ, "bits": 3}, "bits to be 4"),
        ({}, {**AWQ, "bits": "4"}, "bits to be 4"),
        ({}, {**AWQ, "group_size": 0}, "group_size"),
        ({}, {**AWQ, "group_size": 100}, "groups of 100"),
        ({"layer.qzeros": None}, AWQ, "lacks tensor 'layer.qzeros'"),
        ({"layer.qzeros": torch.zeros(3, 4, dtype=torch.int32)}, AWQ, r"expected i32 of shape \[3, 3\]"),
        ({"layer.scales": torch.zeros(3, 24, dtype=torch.int32)}, AWQ, "expected f16"),
        ({}, {**GPTQ, "checkpoint_format": "marlin"}, "marlin"),
        ({}, {**GPTQ, "bits": 5}, "bits to be"),
        ({}, {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, "config_groups"),
        ({}, {"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size"),
    ],
)
def test_what_contradicts_itself_is_one_line(read_back, change, config, needle):
    tensors = {name: tensor for name, tensor in {**awq_tensors(), **change}.items() if tensor is not None}
    with pytest.raises((CheckpointError, UnsupportedModelError), match=needle) as error:
        read_back(tensors, config)
    assert "\n" not in str(error.value)


def test_groups_beyond_the_scales_are_refused(read_back):
    codes, zeros, scales = quantized(3, (192, 32), 4)
    tensors = {
        "layer.qweight": pack_bits(codes, 4),
        "layer.qzeros": pack_bits(zeros.T, 4).T,
        "layer.scales": scales,
        "layer.g_idx": torch.full((192,), 3, dtype=torch.int32),
    }
    with pytest.raises(CheckpointError, match="groups from 0 to 2"):
        read_back(tensors, GPTQ)


@pytest.mark.parametrize(
    "state", [b"", b"[]", b"{", b'{"shape": [24, -1]}', b'{"shape": [24, 192], "blocksize": 0}', b'{"shape": [9, 9]}']
)
def test_a_bitsandbytes_state_that_lies_is_refused(read_back, state):
    tensors = {
        "layer.weight": torch.zeros(24 * 96, 1, dtype=torch.uint8),
        "layer.weight.quant_state.bitsandbytes__nf4": torch.frombuffer(bytearray(state or b" "), dtype=torch.uint8),
    }
    with pytest.raises(CheckpointError, match="bitsandbytes state"):
        read_back(tensors, {"quant_method": "bitsandbytes"})
