"""Qwen3-Next: three gated delta nets to a layer of gated attention, experts in every layer, layers of prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgepack.export.rules import delta_net
from edgepack.export.rules.backwards import Backwards
from edgepack.export.rules.decoder import (
    EVERY_LAYER_HAS_EXPERTS,
    NO_ATTENTION_BIAS,
    SILU,
    embedding_rules,
    plus_one,
)
from edgepack.export.rules.delta_net import LINEAR
from edgepack.export.rules.family import Family, Requirement, TensorRule
from edgepack.export.rules.permutations import picked

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.export.config import ModelConfig
    from edgepack.export.rows import Rows
    from edgepack.gguf.types import Value


def _metadata(config: ModelConfig) -> dict[str, Value]:
    return delta_net.metadata(config, "qwen3next") | delta_net.expert_metadata(config, "qwen3next")


def _parts(config: ModelConfig) -> list[NDArray[np.intp]]:
    """Rows of q, k, v and z in a matrix that holds them key head by key head: [key heads, q k v z, width]."""
    groups, keys = config.count("linear_num_key_heads"), config.count("linear_key_head_dim")
    values = config.count("linear_num_value_heads") // groups * config.count("linear_value_head_dim")
    rows = np.arange(groups * 2 * (keys + values)).reshape(groups, -1)
    return [part.reshape(-1) for part in np.split(rows, [keys, 2 * keys, 2 * keys + values], axis=1)]


def _queries_keys_values(rows: Rows, config: ModelConfig) -> Rows:
    parts = _parts(config)
    return picked(rows, np.concatenate(parts[:3]), sum(map(len, parts)))


def _gates(rows: Rows, config: ModelConfig) -> Rows:
    parts = _parts(config)
    return picked(rows, parts[3], sum(map(len, parts)))


FAMILY = Family(
    name="qwen3next",
    classes=("Qwen3NextForCausalLM",),
    defaults={
        **delta_net.DEFAULTS,
        "num_key_value_heads": 2,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "num_experts_per_tok": 10,
        "num_experts": 512,
    },
    metadata=_metadata,
    backwards=Backwards(delta_net.settings),
    dimensions=delta_net.dimensions,
    blocks=delta_net.blocks,
    observed=delta_net.prediction_layers,
    renames=(("mtp.", "model.mtp."),),
    requirements=(
        SILU,
        NO_ATTENTION_BIAS,
        Requirement("norm_topk_prob", (True,), "its graph normalises the chosen experts' weights"),
        *EVERY_LAYER_HAS_EXPERTS,
        *delta_net.REQUIREMENTS,
    ),
    tensors=(
        *embedding_rules(plus_one),
        *delta_net.layer_rules(
            delta_net.EXPERTS,
            (
                TensorRule("blk.{i}.attn_qkv.weight", LINEAR + "in_proj_qkvz.weight", "qkv d", _queries_keys_values),
                TensorRule("blk.{i}.attn_gate.weight", LINEAR + "in_proj_qkvz.weight", "lv d", _gates),
                TensorRule("blk.{i}.ssm_ba.weight", LINEAR + "in_proj_ba.weight", "2nv d"),
                *delta_net.state_rules(),
            ),
        ),
    ),
)
