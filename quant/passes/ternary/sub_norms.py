"""Two more norms in each block, before attention's output and the feed-forward's down projection: Llama as BitNet.

llama.cpp's `bitnet` graph is Llama's with exactly these two, and transformers has the same model, so that what is made
here is an ordinary checkpoint. Source: BitDistill (arXiv 2510.13998), stage 1. Learning is left to `training`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgepack.errors import UnsupportedModelError
from edgepack.model import TensorSpec
from edgepack.quant.learning.layers import blocks_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import nn

    from edgepack.model import Checkpoint, TensorSource

_ROPES = ("default", "linear", "dynamic")
_BEFORE = {"self_attn.attn_sub_norm": "o_proj", "mlp.ffn_sub_norm": "down_proj"}


@dataclass(frozen=True)
class AddedTensors:
    """A source with tensors that it lacked: a `TensorSource`. Does not modify `base`.

    Attributes:
        base: the source below.
        added: name → float32 array.
    """

    base: TensorSource
    added: Mapping[str, NDArray[np.float32]]

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The base's, then those added."""
        return {**self.base.specs, **{n: TensorSpec(n, array.shape, "f32") for n, array in self.added.items()}}

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """As `TensorSource.read_rows`."""
        if name not in self.added:
            return self.base.read_rows(name, start, stop)
        array = self.added[name]
        return np.array(array.reshape(-1, array.shape[-1])[start:stop])


def check_norms_fit(config: Mapping[str, Any]) -> None:
    """Raise UnsupportedModelError for a model that the graph with the two norms does not fit."""
    kind = config.get("model_type")
    if kind != "llama":
        raise UnsupportedModelError(f"pass 'ternary': norms = true: expected a model of type 'llama', got '{kind}'")
    heads = config["num_attention_heads"]
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    wrong = {
        "attention_bias": bool(config.get("attention_bias")),
        "mlp_bias": bool(config.get("mlp_bias")),
        "hidden_act": config.get("hidden_act", "silu") not in ("silu", "swish"),
        "head_dim": (config.get("head_dim") or config["hidden_size"] // heads) != config["hidden_size"] // heads,
        "tie_word_embeddings": not config.get("tie_word_embeddings"),
        "rope_type": (rope.get("rope_type") or rope.get("type") or "default") not in _ROPES,
    }
    unfit = [name for name, is_wrong in wrong.items() if is_wrong]
    if unfit:
        raise UnsupportedModelError(
            f"pass 'ternary': norms = true: llama.cpp's bitnet graph does not fit this model's {', '.join(unfit)}"
        )


def with_sub_norms(checkpoint: Checkpoint, model: nn.Module, tokens: torch.Tensor) -> Checkpoint:
    """The model as BitNet with two norms a block; does not modify `checkpoint`.

    Their weights are the root mean square of what enters them over some tokens, one number a norm, so that magnitudes
    behind them are about what they were.

    Args:
        checkpoint: a Llama that `check_norms_fit` accepts.
        model: of its weights.
        tokens: int64 [sequences, length].
    """
    sizes = _root_mean_squares(model, tokens)
    prefix = next(name for name in checkpoint.tensors.specs if ".layers." in name).partition(".layers.")[0]
    config, added = dict(checkpoint.config), {}
    widths = {"self_attn.attn_sub_norm": config["hidden_size"], "mlp.ffn_sub_norm": config["intermediate_size"]}
    for (index, norm), size in sizes.items():
        added[f"{prefix}.layers.{index}.{norm}.weight"] = np.full(widths[norm], size, np.float32)
    for key in ("head_dim", "mlp_bias", "pretraining_tp"):
        config.pop(key, None)
    config |= {"model_type": "bitnet", "architectures": ["BitNetForCausalLM"], "hidden_act": "silu"}
    return replace(checkpoint, config=config, tensors=AddedTensors(checkpoint.tensors, added))


def _root_mean_squares(model: nn.Module, tokens: torch.Tensor) -> dict[tuple[int, str], float]:
    """(block, norm) → root mean square of what enters the projection behind it."""
    sums: dict[tuple[int, str], list[float]] = {}
    handles = []

    def watch(key: tuple[int, str]) -> Any:
        def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            sums.setdefault(key, []).append(float(inputs[0].float().square().mean()))

        return hook

    for index, block in enumerate(blocks_of(model)):
        by_name = {path.rpartition(".")[2]: module for path, module in block.named_modules()}
        for norm, projection in _BEFORE.items():
            handles.append(by_name[projection].register_forward_pre_hook(watch((index, norm))))
    try:
        with torch.no_grad():
            for sequence in tokens:
                model(input_ids=sequence[None].to(next(model.parameters()).device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return {key: float(np.sqrt(np.mean(found))) for key, found in sums.items()}
