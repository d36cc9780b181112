"""gpt-oss: experts in MXFP4, which stay as they are, sinks in attention, every other layer with a window."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgepack.export.row_functions import PickedColumns, TransposedExperts
from edgepack.export.rules.decoder import (
    LAYER,
    SILU,
    WHOLE_HEADS,
    attention_rules,
    embedding_rules,
    norm_rules,
    tied_head_copy,
)
from edgepack.export.rules.family import Family, Origin, Requirement, TensorRule
from edgepack.export.rules.metadata import common_metadata, sliding_metadata
from edgepack.export.rules.rope_factors import ramp_remark
from edgepack.export.stored_blocks import alternate
from edgepack.gguf.types import Value, u32

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.export.rows import Rows

_EXPERTS = LAYER + "mlp.experts."


def _metadata(config: ModelConfig) -> dict[str, Value]:
    keys = sliding_metadata(config, 2) | {"expert_feed_forward_length": u32(config.count("intermediate_size"))}
    common = common_metadata(config, "gpt-oss", untruncated=True)
    return common | {f"gpt-oss.{key}": value for key, value in keys.items()}


def _gate_blocks(rows: Rows, _config: ModelConfig) -> Rows:
    return alternate(rows, 0)


def _up_blocks(rows: Rows, _config: ModelConfig) -> Rows:
    return alternate(rows, 1)


def _gate_floats(rows: Rows, _config: ModelConfig) -> Rows:
    return alternate(TransposedExperts(rows), 0)


def _up_floats(rows: Rows, _config: ModelConfig) -> Rows:
    return alternate(TransposedExperts(rows), 1)


def _transposed(rows: Rows, _config: ModelConfig) -> Rows:
    return TransposedExperts(rows)


def _gate_biases(rows: Rows, _config: ModelConfig) -> Rows:
    return PickedColumns(rows, np.arange(0, rows.shape[-1], 2))


def _up_biases(rows: Rows, _config: ModelConfig) -> Rows:
    return PickedColumns(rows, np.arange(1, rows.shape[-1], 2))


_GATE_UP, _DOWN = _EXPERTS + "gate_up_proj", _EXPERTS + "down_proj"

FAMILY = Family(
    name="gpt-oss",
    classes=("GptOssForCausalLM",),
    defaults={
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150000.0,
        "max_position_embeddings": 131072,
        "sliding_window": 128,
        "num_experts_per_tok": 4,
        "num_local_experts": 128,
        "attention_bias": True,
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
    },
    metadata=_metadata,
    remarks=ramp_remark,
    requirements=(
        SILU,
        WHOLE_HEADS,
        Requirement("attention_bias", (True,), "its graph adds a bias after attention"),
        Requirement("swiglu_alpha", (1.702,), "its graph's activation has that slope"),
        Requirement("swiglu_limit", (7,), "its graph's activation ends there"),
    ),
    tensors=(
        *embedding_rules(),
        tied_head_copy(),
        *norm_rules({"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"}),
        *attention_rules(output_bias=True),
        TensorRule("blk.{i}.attn_sinks.weight", LAYER + "self_attn.sinks", "heads"),
        TensorRule("blk.{i}.ffn_gate_inp.weight", LAYER + "mlp.router.weight", "e d"),
        TensorRule("blk.{i}.ffn_gate_inp.bias", LAYER + "mlp.router.bias", "e"),
        # Rows of gate and up in turn; in blocks as they stand, in floats transposed.
        TensorRule(
            "blk.{i}.ffn_gate_exps.weight",
            _GATE_UP + "_blocks",
            "e ff d",
            _gate_blocks,
            alternatives=(Origin(_GATE_UP, _gate_floats),),
        ),
        TensorRule(
            "blk.{i}.ffn_up_exps.weight",
            _GATE_UP + "_blocks",
            "e ff d",
            _up_blocks,
            alternatives=(Origin(_GATE_UP, _up_floats),),
        ),
        TensorRule(
            "blk.{i}.ffn_down_exps.weight", _DOWN + "_blocks", "e d ff", alternatives=(Origin(_DOWN, _transposed),)
        ),
        TensorRule("blk.{i}.ffn_gate_exps.bias", _GATE_UP + "_bias", "e ff", _gate_biases),
        TensorRule("blk.{i}.ffn_up_exps.bias", _GATE_UP + "_bias", "e ff", _up_biases),
        TensorRule("blk.{i}.ffn_down_exps.bias", _DOWN + "_bias", "e d"),
    ),
)
