"""Families whose classes transformers does not have, made of those whose arithmetic they share.

A tiny model of transformers gets their names and settings; its logits are the reference.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from references.family_oracle import token_ids, torch_logits
from references.tiny_checkpoints import TinyModel, random_model, write_checkpoint
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    Tensors = dict[str, torch.Tensor]

SEVEN_B = TinyModel("baichuan-7b", "Llama", {"num_hidden_layers": 32, "num_key_value_heads": 4})
THIRTEEN_B = TinyModel(
    "baichuan-13b",
    "Llama",
    {"num_hidden_layers": 40, "num_attention_heads": 6, "num_key_value_heads": 6, "hidden_size": 96},
)


def baichuan_7b(folder: Path, tokenizer: Path) -> NDArray[np.float32]:
    """Llama with one matrix for queries, keys and values."""
    model = random_model(SEVEN_B)
    write_checkpoint(model, folder, tokenizer)
    _relabel(
        folder,
        _packed,
        {"architectures": ["BaiChuanForCausalLM"], "model_type": "baichuan"},
        without=("num_key_value_heads",),
    )
    return torch_logits(model, token_ids())


def baichuan_2_13b(folder: Path, tokenizer: Path) -> NDArray[np.float32]:
    """With alibi, and a head whose rows have length 1."""
    model, ids = random_model(THIRTEEN_B), token_ids()
    write_checkpoint(model, folder, tokenizer)
    settings = {
        "architectures": ["BaichuanForCausalLM"],
        "model_type": "baichuan",
        "z_loss_weight": 0,
        "model_max_length": 256,
    }
    _relabel(folder, _packed, settings, without=("num_key_value_heads", "max_position_embeddings"))
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.nn.functional.normalize(model.lm_head.weight))
    _alibi(model, len(ids))
    return torch_logits(model, ids)


def internlm_3(folder: Path, tokenizer: Path, *, bias: bool) -> NDArray[np.float32]:
    """Llama by another name."""
    tiny = TinyModel("internlm-3", "Llama", {"head_dim": 32, "attention_bias": bias, "mlp_bias": bias})
    model = random_model(tiny)
    write_checkpoint(model, folder, tokenizer)
    settings = {"architectures": ["InternLM3ForCausalLM"], "model_type": "internlm3", "qkv_bias": bias, "bias": bias}
    _relabel(folder, lambda tensors: tensors, settings, without=("attention_bias", "mlp_bias"))
    return torch_logits(model, token_ids())


def _relabel(
    folder: Path, change: Callable[[Tensors], Tensors], settings: dict[str, Any], without: tuple[str, ...] = ()
) -> None:
    """Other names for the tensors of a checkpoint, and other settings."""
    path = folder / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path)
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in without} | settings
    (folder / "config.json").write_text(json.dumps(config))


def _packed(tensors: Tensors) -> Tensors:
    """Queries, keys and values one below the other, as Baichuan has them."""
    found = {name: tensor for name, tensor in tensors.items() if ".self_attn." not in name or "o_proj" in name}
    for name in tensors:
        if name.endswith("q_proj.weight"):
            parts = [tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            found[name.replace("q_proj", "W_pack")] = torch.cat(parts)
    return found


def _alibi(model: Any, tokens: int) -> None:
    """Attention of Baichuan 13B in a Llama: no rope, a penalty for distance that differs from head to head."""
    heads = model.config.num_attention_heads
    nearest = 2 ** int(np.log2(heads))
    slopes = [2.0 ** (-8.0 * (i + 1) / nearest) for i in range(nearest)]
    slopes += [2.0 ** (-4.0 * (2 * i + 1) / nearest) for i in range(heads - nearest)]
    position = torch.arange(tokens)
    distance = (position[None] - position[:, None]).double()
    mask = torch.tensor(slopes).double()[:, None, None] * distance
    mask = mask.masked_fill(distance > 0, float("-inf"))[None]

    def unturned(x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        del position_ids
        width = model.config.hidden_size // heads
        return torch.ones(1, tokens, width, dtype=x.dtype), torch.zeros(1, tokens, width, dtype=x.dtype)

    model.model.rotary_emb.forward = unturned
    for layer in model.model.layers:
        attention = layer.self_attn.forward
        layer.self_attn.forward = lambda *args, _own=attention, **more: _own(*args, **{**more, "attention_mask": mask})
