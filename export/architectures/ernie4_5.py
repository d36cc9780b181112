"""ERNIE 4.5, dense and with experts: Llama's graph with rope on pairs as the checkpoint has it, and shared experts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgepack.export.rules.backwards import Backwards
from edgepack.export.rules.decoder import (
    LAYER,
    LLAMA_NORMS,
    SILU,
    WHOLE_HEADS,
    attention_rules,
    embedding_rules,
    feed_forward_rules,
    norm_rules,
    one_row_as_vector,
    restricted,
    router_rule,
)
from edgepack.export.rules.experts import expert_rules
from edgepack.export.rules.family import BUFFERS, Family, Origin, Requirement, TensorRule, standard_dimensions
from edgepack.export.rules.metadata import common_metadata
from edgepack.gguf.types import Value, u32

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.export.rules.backwards import Header, Settings


def _dense_metadata(config: ModelConfig) -> dict[str, Value]:
    return common_metadata(config, "ernie4_5")


def _dense_layers(config: ModelConfig) -> int:
    return config.count("moe_layer_start_index") if config.get("moe_layer_start_index") else 0


def _dense(config: ModelConfig, layer: int) -> bool:
    return layer < _dense_layers(config)


def _has_experts(config: ModelConfig, layer: int) -> bool:
    return not _dense(config, layer)


def _shared_width(config: ModelConfig) -> int:
    """Of the shared experts together; 0 without."""
    shared = config.count("moe_num_shared_experts") if config.get("moe_num_shared_experts") else 0
    return shared * config.count("moe_intermediate_size")


def _shares(config: ModelConfig, layer: int) -> bool:
    return _has_experts(config, layer) and _shared_width(config) > 0


def _expert_metadata(config: ModelConfig) -> dict[str, Value]:
    keys = {
        "expert_feed_forward_length": u32(config.count("moe_intermediate_size")),
        "expert_shared_feed_forward_length": u32(_shared_width(config)),
        "interleave_moe_layer_step": u32(1),
        "leading_dense_block_count": u32(_dense_layers(config)),
    }
    common = common_metadata(config, "ernie4_5-moe")
    return common | {f"ernie4_5-moe.{key}": value for key, value in keys.items()}


def _dimensions(config: ModelConfig) -> dict[str, int]:
    return standard_dimensions(config) | {
        "moe": config.count("moe_intermediate_size"),
        "shared": _shared_width(config),
    }


_NO_BIAS = Requirement("use_bias", (False,), "its graph has no bias")
_ATTENTION = (*embedding_rules(), *norm_rules(LLAMA_NORMS), *attention_rules(bias=False))
_DEFAULTS = {
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
}

DENSE = Family(
    name="ernie4_5",
    classes=("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"),
    defaults={**_DEFAULTS, "num_key_value_heads": 2, "head_dim": 128},
    metadata=_dense_metadata,
    requirements=(SILU, WHOLE_HEADS, _NO_BIAS),
    tensors=(*_ATTENTION, *feed_forward_rules()),
)


def _settings(header: Header) -> Settings:
    width = header.count("expert_feed_forward_length")
    return {
        "moe_num_shared_experts": header.count("expert_shared_feed_forward_length") // max(1, width),
        "moe_layer_end_index": header.count("block_count") - 1,
    }


EXPERTS = replace(
    DENSE,
    name="ernie4_5-moe",
    classes=("Ernie4_5_MoeForCausalLM",),
    spellings={"num_experts": "moe_num_experts", "num_experts_per_tok": "moe_k"},
    defaults={
        **_DEFAULTS,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 1536,
        "num_experts": 64,
        "num_experts_per_tok": 6,
        "moe_num_shared_experts": 2,
        "moe_layer_start_index": 1,
    },
    metadata=_expert_metadata,
    backwards=Backwards(_settings),
    dimensions=_dimensions,
    unused=(*BUFFERS, r"^model\.mtp_"),  # layers of prediction, of which llama.cpp has no graph
    requirements=(
        *DENSE.requirements,
        Requirement("moe_layer_interval", (1,), "every layer of its graph behind the dense ones has experts"),
        Requirement(
            "moe_layer_end_index",
            lambda config: (-1, config.n_layers - 1),
            "every layer of its graph behind the dense ones has experts",
        ),
    ),
    tensors=(
        *_ATTENTION,
        *feed_forward_rules(when=_dense),
        *restricted(
            (
                router_rule(LAYER + "mlp.gate.weight"),
                TensorRule(
                    "blk.{i}.exp_probs_b.bias",
                    LAYER + "mlp.moe_statics.e_score_correction_bias",
                    "e",
                    one_row_as_vector,
                    alternatives=(Origin(LAYER + "mlp.gate.moe_statics.e_score_correction_bias", one_row_as_vector),),
                ),
                *expert_rules(LAYER + "mlp.experts."),
            ),
            _has_experts,
        ),
        *feed_forward_rules(module="mlp.shared_experts.", suffix="_shexp", width="shared", when=_shares),
    ),
)

FAMILIES = (DENSE, EXPERTS)
