"""Jamba: Mamba with norms inside, attention without positions every so many layers, experts in every other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.export.rules.backwards import Backwards
from edgepack.export.rules.decoder import (
    EQUAL_HEADS,
    LAYER,
    NO_ATTENTION_BIAS,
    SILU,
    attention_rules,
    feed_forward_rules,
    norm_rules,
    restricted,
    router_rule,
)
from edgepack.export.rules.experts import expert_rules
from edgepack.export.rules.family import Family, Requirement, TensorRule, standard_dimensions
from edgepack.export.rules.metadata import common_metadata
from edgepack.export.rules.state_space import mamba_rules
from edgepack.gguf.types import Value, ValueType, array, u32

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.export.rules.backwards import Header, Settings

_MIXER = LAYER + "mamba."


def _comes_round(config: ModelConfig, layer: int, kind: str) -> bool:
    """Whether a layer is one of those that come every `{kind}_layer_period` layers, from `{kind}_layer_offset` on."""
    offset = config.get(f"{kind}_layer_offset")
    return layer % config.count(f"{kind}_layer_period") == (offset if type(offset) is int else 0)


def _attends(config: ModelConfig, layer: int) -> bool:
    return _comes_round(config, layer, "attn")


def _recurs(config: ModelConfig, layer: int) -> bool:
    return not _attends(config, layer)


def _has_experts(config: ModelConfig, layer: int) -> bool:
    return config.n_experts > 1 and _comes_round(config, layer, "expert")


def _is_dense(config: ModelConfig, layer: int) -> bool:
    return not _has_experts(config, layer)


def _inner(config: ModelConfig) -> int:
    return 2 * config.hidden


def _rank(config: ModelConfig) -> int:
    """Width of the projection that makes steps; a sixteenth of the hidden size where it is `auto`."""
    if config.get("mamba_dt_rank") in (None, "auto"):
        return -(-config.hidden // 16)
    return config.count("mamba_dt_rank")


def _metadata(config: ModelConfig) -> dict[str, Value]:
    kv_heads = [config.n_kv_heads if _attends(config, layer) else 0 for layer in range(config.n_layers)]
    keys: dict[str, Value] = {
        "attention.head_count_kv": array(ValueType.UINT32, kv_heads),
        "ssm.conv_kernel": u32(config.count("mamba_d_conv")),
        "ssm.inner_size": u32(_inner(config)),
        "ssm.state_size": u32(config.count("mamba_d_state")),
        "ssm.time_step_rank": u32(_rank(config)),
    }
    return common_metadata(config, "jamba", rope_types=()) | {f"jamba.{key}": value for key, value in keys.items()}


def _dimensions(config: ModelConfig) -> dict[str, int]:
    state, rank = config.count("mamba_d_state"), _rank(config)
    return standard_dimensions(config) | {
        "si": _inner(config),
        "2si": 2 * _inner(config),
        "sk": config.count("mamba_d_conv"),
        "sn": state,
        "sr": rank,
        "sr+2sn": rank + 2 * state,
    }


def _comes(layers: list[bool], kind: str) -> Settings:
    """Period and offset of the layers that are true."""
    places = [layer for layer, each in enumerate(layers) if each] or [len(layers)]
    period = places[1] - places[0] if len(places) > 1 else max(len(layers), places[0] + 1)
    return {f"{kind}_layer_period": period, f"{kind}_layer_offset": places[0]}


def _settings(header: Header) -> Settings:
    experts = header.layers_with("ffn_gate_inp.weight")
    return {
        **_comes(header.flags("attention.head_count_kv"), "attn"),
        **_comes(experts, "expert"),
        "num_experts": header.count("expert_count") if any(experts) else 1,
    }


FAMILY = Family(
    name="jamba",
    classes=("JambaForCausalLM",),
    defaults={
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 262144,
        "num_experts_per_tok": 2,
        "num_experts": 16,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "attn_layer_period": 8,
        "attn_layer_offset": 4,
        "mamba_d_state": 16,
        "mamba_d_conv": 4,
    },
    metadata=_metadata,
    backwards=Backwards(_settings),
    dimensions=_dimensions,
    requirements=(
        SILU,
        NO_ATTENTION_BIAS,
        EQUAL_HEADS,
        Requirement("mamba_expand", (2,), "its graph's mixers are twice as wide as the rest"),
        Requirement("mamba_conv_bias", (True,), "its graph adds a bias after the convolution"),
        Requirement("mamba_proj_bias", (False,), "its graph has no biases around the mixer"),
    ),
    tensors=(
        TensorRule("token_embd.weight", "model.embed_tokens.weight", "v d"),
        TensorRule("output_norm.weight", "model.final_layernorm.weight", "d"),
        TensorRule("output.weight", "lm_head.weight", "v d"),
        *norm_rules({"attn_norm": "input_layernorm", "ffn_norm": "pre_ff_layernorm"}),
        *attention_rules(bias=False, when=_attends),
        *mamba_rules(_MIXER, _recurs),
        TensorRule("blk.{i}.ssm_dt_norm.weight", _MIXER + "dt_layernorm.weight", "sr", when=_recurs),
        TensorRule("blk.{i}.ssm_b_norm.weight", _MIXER + "b_layernorm.weight", "sn", when=_recurs),
        TensorRule("blk.{i}.ssm_c_norm.weight", _MIXER + "c_layernorm.weight", "sn", when=_recurs),
        *feed_forward_rules(module="feed_forward.", when=_is_dense),
        *restricted(
            (
                router_rule(LAYER + "feed_forward.router.weight"),
                *expert_rules(LAYER + "feed_forward.experts.", width="ff"),
            ),
            _has_experts,
        ),
    ),
)
