"""Experts in MXFP4 come through untouched, and are the numbers that transformers reads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
import torch
from references.family_oracle import llama_logits, token_ids, torch_logits
from references.hybrid_models import HYBRIDS
from references.llama_quantize import tensors_of
from references.tiny_checkpoints import random_model, write_checkpoint
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from edgepack.errors import CheckpointError
from edgepack.export.gguf_file import write_gguf
from edgepack.export.mapped_model import open_model
from edgepack.export.plan import PlanOptions, plan_export
from edgepack.export.rows import ArrayRows
from edgepack.export.stored_blocks import alternate
from edgepack.gguf.types import GGMLType
from edgepack.quant.types.choice import Overrides
from edgepack.quant.types.targets import find_target

if TYPE_CHECKING:
    from pathlib import Path

PROJECTIONS = ("gate_up_proj", "down_proj")


def packed_checkpoint(folder: Path, tokenizer: Path) -> Any:
    """A tiny gpt-oss whose experts are random MXFP4 numbers; gives the model that holds what transformers reads."""
    model = random_model(next(tiny for tiny in HYBRIDS if tiny.name == "gpt-oss"))
    write_checkpoint(model, folder, tokenizer)
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(7)
    for name in [name for name in tensors if name.endswith(PROJECTIONS)]:
        experts, columns, rows = tensors.pop(name).shape
        sizes = (experts, rows, columns // 32, 16)
        blocks = torch.randint(0, 256, sizes, dtype=torch.uint8, generator=generator)
        scales = torch.randint(119, 124, sizes[:3], dtype=torch.uint8, generator=generator)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        with torch.no_grad():
            model.get_parameter(name).copy_(convert_moe_packed_tensors(blocks, scales, dtype=torch.float32))
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "mxfp4"}}))
    return model


@pytest.mark.parametrize("target", ["f32", "q4km", "q2k", "mxfp4"])
def test_blocks_are_kept_for_every_target_and_are_transformers_numbers(
    target: str, books: Path, tmp_path: Path
) -> None:
    model = packed_checkpoint(tmp_path / "model", books)
    path = tmp_path / "model.gguf"
    write_gguf(plan_export(open_model(tmp_path / "model"), find_target(target)), path)
    written = tensors_of(path)
    for layer, block in enumerate(model.model.layers):
        gate_up = block.mlp.experts.gate_up_proj.detach().numpy().swapaxes(1, 2)
        down = block.mlp.experts.down_proj.detach().numpy().swapaxes(1, 2)
        for part, expected in (("gate", gate_up[:, ::2]), ("up", gate_up[:, 1::2]), ("down", down)):
            kind, raw = written[f"blk.{layer}.ffn_{part}_exps.weight"]
            assert kind == "MXFP4"
            rows = np.frombuffer(raw, dtype=np.uint8).reshape(-1, expected.shape[-1] // 32 * 17)
            got = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType.MXFP4)
            assert np.array_equal(got.reshape(expected.shape), expected)


def test_llama_cpp_computes_with_them(books: Path, tmp_path: Path) -> None:
    """Not to the last bit: it multiplies MXFP4 with activations of eight bits."""
    model, ids = packed_checkpoint(tmp_path / "model", books), token_ids()
    path = tmp_path / "model.gguf"
    write_gguf(plan_export(open_model(tmp_path / "model"), find_target("f32")), path)
    got, expected = llama_logits(path, ids), torch_logits(model, ids)
    assert np.corrcoef(got.ravel(), expected.ravel())[0, 1] > 0.999


def test_they_are_quantised_again_only_when_asked(books: Path, tmp_path: Path) -> None:
    packed_checkpoint(tmp_path / "model", books)
    kept, again = (open_model(tmp_path / "model", allow_requantize=asked) for asked in (False, True))
    target, name = find_target("q8"), "blk.0.ffn_up_exps.weight"
    by_hand = PlanOptions(Overrides(patterns=((r"ffn_up_exps", GGMLType.Q5_0),)))

    def kind(model: Any, options: PlanOptions) -> str:
        return next(info.type.name for info in plan_export(model, target, options).infos if info.name == name)

    assert (kind(kept, PlanOptions()), kind(again, PlanOptions()), kind(kept, by_hand)) == ("MXFP4", "Q8_0", "Q5_0")


@pytest.mark.parametrize("change", ["absent", "short", "floats"])
def test_scales_that_do_not_belong_to_the_blocks_are_refused(change: str, books: Path, tmp_path: Path) -> None:
    packed_checkpoint(tmp_path / "model", books)
    path = tmp_path / "model/model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("down_proj_scales"))
    scales = tensors.pop(name)
    changed = {"absent": {}, "short": {name: scales[:-1].clone()}, "floats": {name: scales.float()}}[change]
    save_file(tensors | changed, path)
    with pytest.raises(CheckpointError, match=r"down_proj_scales"):
        open_model(tmp_path / "model")


def test_every_other_row_is_the_same_however_it_is_read() -> None:
    whole = np.arange(3 * 8 * 2, dtype=np.float32).reshape(3, 8, 2)
    for first in (0, 1):
        rows = alternate(ArrayRows(whole), first)
        expected = whole[:, first::2].reshape(-1, 2)
        assert rows.shape == (3, 4, 2)
        for start in range(12):
            assert np.array_equal(rows.read(start, 12), expected[start:])
