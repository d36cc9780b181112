"""Falcon 7B, 11B and 40B: attention and feed-forward side by side, few key-value heads, q, k and v in one matrix.

The 40B has a norm of its own before each of the two, and holds q, k and v group by group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgepack.export.arranged_rows import PermutedRows
from edgepack.export.rules.backwards import Backwards
from edgepack.export.rules.decoder import GELU, WHOLE_HEADS, restricted
from edgepack.export.rules.encoder import layer_norm
from edgepack.export.rules.family import Family, Requirement, TensorRule, standard_dimensions
from edgepack.export.rules.metadata import common_metadata
from edgepack.gguf.types import Value, u32

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.export.rows import Rows
    from edgepack.export.rules.backwards import Header, Settings

_LAYER = "transformer.h.{i}."


def _kv_heads(config: ModelConfig) -> int:
    grouped = config.flag("new_decoder_architecture") or not config.flag("multi_query", default=True)
    return config.count("num_kv_heads", "n_head_kv", default=config.n_heads) if grouped else 1


def _with_kv_heads(config: ModelConfig) -> ModelConfig:
    return config.changed(num_key_value_heads=_kv_heads(config))


def _width(config: ModelConfig) -> int:
    return config.count("ffn_hidden_size", default=4 * config.hidden)


def _metadata(config: ModelConfig) -> dict[str, Value]:
    common = common_metadata(_with_kv_heads(config), "falcon", epsilon="layer_norm_epsilon")
    return common | {"falcon.feed_forward_length": u32(_width(config))}


def _dimensions(config: ModelConfig) -> dict[str, int]:
    found = standard_dimensions(_with_kv_heads(config).changed(intermediate_size=_width(config)))
    return found | {"qkv": found["q"] + 2 * found["kv"]}


def _two_norms(config: ModelConfig, _layer: int) -> bool:
    """The 40B; the 11B shares one norm as the 7B does."""
    return config.flag("new_decoder_architecture") and config.get("num_ln_in_parallel_attn") in (None, 2)


def _one_norm(config: ModelConfig, layer: int) -> bool:
    return not _two_norms(config, layer)


def _ungrouped(rows: Rows, config: ModelConfig) -> Rows:
    """HF: [group, q … q k v, in] → ggml: [q of all groups, k of all, v of all, in]; one group is so already."""
    heads, groups, width = config.n_heads, _kv_heads(config), config.head_dim
    if rows.shape[0] != (heads + 2 * groups) * width:
        return rows
    order = np.arange(rows.shape[0]).reshape(groups, heads // groups + 2, width)
    parts = (order[:, :-2], order[:, -2], order[:, -1])
    return PermutedRows(rows, np.concatenate([part.reshape(-1) for part in parts]))


def _settings(header: Header) -> Settings:
    grouped, norms = header.count("attention.head_count_kv") > 1, header.has(".attn_norm_2.")
    return {
        "ffn_hidden_size": header.count("feed_forward_length"),
        "new_decoder_architecture": grouped or norms,
        "num_ln_in_parallel_attn": 2 if norms else 1,
        "num_kv_heads": header.count("attention.head_count_kv"),
    }


FAMILY = Family(
    name="falcon",
    classes=("FalconForCausalLM", "RWForCausalLM"),
    defaults={
        "layer_norm_epsilon": 1e-5,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
    metadata=_metadata,
    backwards=Backwards(_settings),
    dimensions=_dimensions,
    requirements=(
        Requirement("alibi", (False,), "its graph has rope"),
        Requirement("bias", (False,), "its graph has no such bias"),
        Requirement("parallel_attn", (True,), "its graph has attention and feed-forward side by side"),
        Requirement("activation", GELU, "its graph uses GELU"),
        WHOLE_HEADS,
    ),
    tensors=(
        TensorRule("token_embd.weight", "transformer.word_embeddings.weight", "v d"),
        *layer_norm("output_norm", "transformer.ln_f"),
        TensorRule("output.weight", "lm_head.weight", "v d"),
        *restricted(layer_norm("blk.{i}.attn_norm", _LAYER + "input_layernorm"), _one_norm),
        *restricted(layer_norm("blk.{i}.attn_norm", _LAYER + "ln_mlp"), _two_norms),
        *restricted(layer_norm("blk.{i}.attn_norm_2", _LAYER + "ln_attn"), _two_norms),
        TensorRule("blk.{i}.attn_qkv.weight", _LAYER + "self_attention.query_key_value.weight", "qkv d", _ungrouped),
        TensorRule("blk.{i}.attn_output.weight", _LAYER + "self_attention.dense.weight", "d d"),
        TensorRule("blk.{i}.ffn_up.weight", _LAYER + "mlp.dense_h_to_4h.weight", "ff d"),
        TensorRule("blk.{i}.ffn_down.weight", _LAYER + "mlp.dense_4h_to_h.weight", "d ff"),
    ),
)
