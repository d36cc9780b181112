"""Gated delta-net layers, which Qwen3-Next and Qwen 3.5 put between layers of attention, and layers of prediction.

What the two families do not share is their data in `export.architectures`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import CheckpointError
from edgepack.export.row_functions import decay_rates
from edgepack.export.rules.decoder import (
    LAYER,
    attention_rules,
    feed_forward_rules,
    head_norm_rules,
    norm_rules,
    plus_one,
    relocated,
    restricted,
    router_rule,
    squeezed,
)
from edgepack.export.rules.experts import GATED_SHARED_EXPERT, expert_rules
from edgepack.export.rules.family import Requirement, TensorRule, standard_dimensions
from edgepack.export.rules.metadata import common_metadata, layer_kinds
from edgepack.gguf.types import Value, ValueType, array, u32

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    from edgepack.export.config import ModelConfig
    from edgepack.export.rows import Rows
    from edgepack.export.rules.backwards import Header, Settings
    from edgepack.export.rules.family import Transform

LINEAR = LAYER + "linear_attn."
LINEAR_OR_FULL = ("linear_attention", "full_attention")
_PREDICTION = "mtp.layers.{n}."
_PREDICTION_NAME = re.compile(r"(?:model\.)?mtp\.layers\.(\d+)\.")

DEFAULTS: dict[str, Any] = {
    "head_dim": 256,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "partial_rotary_factor": 0.25,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
}
"""As transformers has them."""

REQUIREMENTS = (
    Requirement(
        "linear_value_head_dim",
        lambda config: (config.count("linear_key_head_dim"),),
        "its graph's keys and values of linear attention have one width",
    ),
    Requirement("rms_norm_eps", (1e-6,), "its graph takes it for the lengths of linear attention's q and k too"),
)


def prediction_layers(names: Collection[str]) -> dict[str, int]:
    """How many layers of prediction a checkpoint has; transformers writes none, whatever the configuration says."""
    found = [int(match[1]) for match in map(_PREDICTION_NAME.match, names) if match]
    return {"mtp_num_hidden_layers": max(found, default=-1) + 1}


def n_prediction_layers(config: ModelConfig) -> int:
    """Layers of prediction, of which llama.cpp's graph holds one."""
    return config.bounded("layers of prediction", 1, "mtp_num_hidden_layers") if _predicts(config) else 0


def _predicts(config: ModelConfig) -> bool:
    return config.get("mtp_num_hidden_layers") not in (None, 0)


def blocks(config: ModelConfig) -> int:
    """Layers and those of prediction."""
    return config.n_layers + n_prediction_layers(config)


def in_trunk(config: ModelConfig, layer: int) -> bool:
    """Whether it is a layer of the model proper."""
    return layer < config.n_layers


def _after_trunk(config: ModelConfig, layer: int) -> bool:
    return layer >= config.n_layers


def _kinds(config: ModelConfig) -> list[str]:
    every = config.count("full_attention_interval", default=4)
    return layer_kinds(config, LINEAR_OR_FULL, lambda layer: LINEAR_OR_FULL[(layer + 1) % every == 0])


def is_linear(config: ModelConfig, layer: int) -> bool:
    """Whether a layer is a delta net; those of prediction attend."""
    return in_trunk(config, layer) and _kinds(config)[layer] == "linear_attention"


def _attends(config: ModelConfig, layer: int) -> bool:
    return in_trunk(config, layer) and not is_linear(config, layer)


def metadata(config: ModelConfig, name: str) -> dict[str, Value]:
    """Every key but rope's sections and the widths of experts."""
    extra = n_prediction_layers(config)
    heads = config.count("linear_num_value_heads")
    recurrent = [is_linear(config, layer) for layer in range(blocks(config))]
    keys = {
        "block_count": u32(blocks(config)),
        "attention.recurrent_layers": array(ValueType.BOOL, recurrent),
        "ssm.conv_kernel": u32(config.count("linear_conv_kernel_dim")),
        "ssm.state_size": u32(config.count("linear_key_head_dim")),
        "ssm.group_count": u32(config.count("linear_num_key_heads")),
        "ssm.time_step_rank": u32(heads),
        "ssm.inner_size": u32(config.count("linear_value_head_dim") * heads),
    }
    if extra:
        keys["nextn_predict_layers"] = u32(extra)
    return common_metadata(config, name) | {f"{name}.{key}": value for key, value in keys.items()}


def expert_metadata(config: ModelConfig, name: str) -> dict[str, Value]:
    """Widths of routed and shared experts."""
    return {
        f"{name}.expert_feed_forward_length": u32(config.count("moe_intermediate_size")),
        f"{name}.expert_shared_feed_forward_length": u32(config.count("shared_expert_intermediate_size")),
    }


def dimensions(config: ModelConfig) -> dict[str, int]:
    """2q queries with their gates · lk, lv linear attention's keys and values · nv its value heads · c its width.

    Raises:
        CheckpointError: value heads that are no multiple of key heads.
    """
    key_heads, value_heads = config.count("linear_num_key_heads"), config.count("linear_num_value_heads")
    if value_heads % key_heads:
        raise CheckpointError(f"{config.label}: {value_heads} linear value heads are not a multiple of {key_heads}")
    keys, values = key_heads * config.count("linear_key_head_dim"), value_heads * config.count("linear_value_head_dim")
    own = {
        "2q": 2 * config.n_heads * config.head_dim,
        "lk": keys,
        "lv": values,
        "qkv": 2 * keys + values,
        "nv": value_heads,
        "2nv": 2 * value_heads,
        "lh": config.count("linear_value_head_dim"),
        "conv": config.count("linear_conv_kernel_dim"),
        "2d": 2 * config.hidden,
    }
    if config.n_experts:
        own |= {"moe": config.count("moe_intermediate_size"), "shared": config.count("shared_expert_intermediate_size")}
    return standard_dimensions(config) | own


def settings(header: Header) -> Settings:
    """What the metadata imply of config.json."""
    return {
        "layer_types": [LINEAR_OR_FULL[not each] for each in header.flags("attention.recurrent_layers")],
        "linear_value_head_dim": header.count("ssm.state_size"),
        "norm_topk_prob": True,
    }


def tiled_order(groups: int, each: int, width: int) -> NDArray[np.intp]:
    """Value heads one of each group in turn from value heads group by group.

    HF: [key head, value heads of it, width] → ggml: [value heads of it, key head, width], which ggml's broadcast of
    key heads pairs with them.
    """
    rows = np.arange(groups * each * width).reshape(groups, each, width)
    order: NDArray[np.intp] = rows.swapaxes(0, 1).reshape(-1)
    return order


_ATTENTION = (
    *attention_rules(bias=False, query="2q"),
    *head_norm_rules(plus_one),
)
_NORMS = norm_rules({"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"}, plus_one)

EXPERTS = (
    router_rule(LAYER + "mlp.gate.weight"),
    *expert_rules(LAYER + "mlp.experts."),
    *GATED_SHARED_EXPERT,
)
DENSE = feed_forward_rules()

_HEADS = (
    TensorRule("blk.{i}.nextn.eh_proj.weight", "mtp.fc.weight", "d 2d"),
    TensorRule("blk.{i}.nextn.enorm.weight", "mtp.pre_fc_norm_embedding.weight", "d", plus_one),
    TensorRule("blk.{i}.nextn.hnorm.weight", "mtp.pre_fc_norm_hidden.weight", "d", plus_one),
    TensorRule("blk.{i}.nextn.shared_head_norm.weight", "mtp.norm.weight", "d", plus_one),
)


def layer_rules(feed_forward: tuple[TensorRule, ...], linear: tuple[TensorRule, ...]) -> tuple[TensorRule, ...]:
    """Rules of every layer: of the trunk, and of prediction, which is a layer of attention behind its own `mtp.`.

    Args:
        feed_forward: `DENSE` or `EXPERTS`.
        linear: what a delta net reads its input with; its other tensors are added.
    """
    return (
        *restricted((*_NORMS, *feed_forward), in_trunk),
        *restricted(_ATTENTION, _attends),
        *restricted(linear, is_linear),
        *relocated((*_NORMS, *_ATTENTION, *feed_forward), _PREDICTION, _after_trunk),
        *restricted(_HEADS, _after_trunk),
    )


def state_rules(
    vector: Transform | None = None, convolution: Transform = squeezed, output: Transform | None = None
) -> tuple[TensorRule, ...]:
    """A delta net's tensors beside its input projections.

    Args:
        vector: order of the vectors with an element for each value head.
        convolution: shape and order of the convolution's channels.
        output: order of the output projection's columns.
    """

    def rates(rows: Rows, config: ModelConfig) -> Rows:
        return decay_rates(vector(rows, config) if vector else rows, config)

    return (
        TensorRule("blk.{i}.ssm_conv1d.weight", LINEAR + "conv1d.weight", "qkv conv", convolution),
        TensorRule("blk.{i}.ssm_dt.bias", LINEAR + "dt_bias", "nv", vector),
        TensorRule("blk.{i}.ssm_a", LINEAR + "A_log", "nv", rates),
        TensorRule("blk.{i}.ssm_norm.weight", LINEAR + "norm.weight", "lh"),
        TensorRule("blk.{i}.ssm_out.weight", LINEAR + "out_proj.weight", "d lv", output),
    )
