"""LFM 2, dense and with experts: short convolutions behind gates, attention in some layers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgepack.export.rules.backwards import Backwards
from edgepack.export.rules.decoder import (
    EQUAL_HEADS,
    LAYER,
    NO_ATTENTION_BIAS,
    WHOLE_HEADS,
    attention_rules,
    feed_forward_rules,
    head_norm_rules,
    norm_rules,
    restricted,
    router_rule,
    squeezed,
)
from edgepack.export.rules.experts import expert_rules
from edgepack.export.rules.family import Family, Requirement, TensorRule, standard_dimensions
from edgepack.export.rules.metadata import common_metadata, layer_kinds
from edgepack.export.rules.text_part import text_part
from edgepack.gguf.types import Value, ValueType, array, u32

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.export.rules.backwards import Header, Settings

_KINDS = ("full_attention", "conv")
_SIGMOID = 2  # LLAMA_EXPERT_GATING_FUNC_TYPE_SIGMOID
_W = ("w1", "w3", "w2")  # gate, up, down
_CONV = LAYER + "conv."


def _kinds(config: ModelConfig) -> list[str]:
    attending = config.get("full_attn_idxs")
    return layer_kinds(config, _KINDS, lambda layer: _KINDS[attending is not None and layer not in attending])


def _attends(config: ModelConfig, layer: int) -> bool:
    return _kinds(config)[layer] == "full_attention"


def _convolves(config: ModelConfig, layer: int) -> bool:
    return not _attends(config, layer)


def _n_dense(config: ModelConfig) -> int:
    """The first layers, which have no experts."""
    if not config.n_experts:
        return config.n_layers
    return config.count("num_dense_layers") if config.get("num_dense_layers") else 0


def _dense(config: ModelConfig, layer: int) -> bool:
    return layer < _n_dense(config)


def _has_experts(config: ModelConfig, layer: int) -> bool:
    return layer >= _n_dense(config)


def _width(config: ModelConfig) -> int:
    """The inner width: two thirds of the configured one, scaled and rounded up, where the dense model adjusts it."""
    width = config.count("block_ff_dim", "intermediate_size")
    if config.n_experts or not config.flag("block_auto_adjust_ff_dim"):
        return width
    width = int(2 * width / 3)
    if config.get("block_ffn_dim_multiplier") is None:
        return width
    multiple = config.count("block_multiple_of")
    return multiple * -(-int(config.number("block_ffn_dim_multiplier") * width) // multiple)


def _keys(config: ModelConfig, name: str) -> dict[str, Value]:
    heads = [config.n_kv_heads if _attends(config, layer) else 0 for layer in range(config.n_layers)]
    keys: dict[str, Value] = {
        "attention.head_count_kv": array(ValueType.UINT32, heads),
        "feed_forward_length": u32(_width(config)),
        "shortconv.l_cache": u32(config.count("conv_L_cache")),
    }
    if config.n_experts:
        keys |= {
            "expert_feed_forward_length": u32(config.count("moe_intermediate_size")),
            "expert_gating_func": u32(_SIGMOID),
            "leading_dense_block_count": u32(_n_dense(config)),
        }
    common = common_metadata(config, name, epsilon="norm_eps", rms=True)
    return common | {f"{name}.{key}": value for key, value in keys.items()}


def _dense_metadata(config: ModelConfig) -> dict[str, Value]:
    return _keys(config, "lfm2")


def _expert_metadata(config: ModelConfig) -> dict[str, Value]:
    return _keys(config, "lfm2moe")


def _dimensions(config: ModelConfig) -> dict[str, int]:
    own = {"ff": _width(config), "3d": 3 * config.hidden, "conv": config.count("conv_L_cache")}
    if config.n_experts:
        own["moe"] = config.count("moe_intermediate_size")
    return standard_dimensions(config.with_defaults({"intermediate_size": own["ff"]})) | own


def _attention() -> tuple[TensorRule, ...]:
    """As usual but for the output's name."""
    return tuple(
        replace(rule, sources=LAYER + "self_attn.out_proj.weight") if "attn_output" in rule.target else rule
        for rule in attention_rules(bias=False, when=_attends)
    )


_SHARED = (
    TensorRule("token_embd.weight", "model.embed_tokens.weight", "v d"),
    TensorRule("token_embd_norm.weight", "model.embedding_norm.weight", "d"),  # which is the last norm
    TensorRule("output.weight", "lm_head.weight", "v d"),
    *norm_rules({"attn_norm": "operator_norm", "ffn_norm": "ffn_norm"}),
    *_attention(),
    *head_norm_rules(when=_attends, name="{}_layernorm"),
    TensorRule("blk.{i}.shortconv.conv.weight", _CONV + "conv.weight", "d conv", squeezed, when=_convolves),
    TensorRule("blk.{i}.shortconv.in_proj.weight", _CONV + "in_proj.weight", "3d d", when=_convolves),
    TensorRule("blk.{i}.shortconv.out_proj.weight", _CONV + "out_proj.weight", "d d", when=_convolves),
    *feed_forward_rules(module="feed_forward.", names=_W, when=_dense),
)
_DEFAULTS = {
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "norm_eps": 1e-5,
    "rope_theta": 1e6,
    "max_position_embeddings": 128000,
    "conv_L_cache": 3,
    "tie_word_embeddings": True,
}


def _settings(header: Header) -> Settings:
    attends = header.flags("attention.head_count_kv")
    return {
        "layer_types": [_KINDS[not each] for each in attends],
        "block_auto_adjust_ff_dim": False,
        "norm_topk_prob": True,
        "use_expert_bias": True,
    }


DENSE = Family(
    name="lfm2",
    classes=("Lfm2ForCausalLM", "LFM2ForCausalLM"),
    defaults={
        **_DEFAULTS,
        "block_multiple_of": 256,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": True,
    },
    metadata=_dense_metadata,
    backwards=Backwards(_settings),
    dimensions=_dimensions,
    requirements=(
        WHOLE_HEADS,
        NO_ATTENTION_BIAS,
        EQUAL_HEADS,
        Requirement("conv_bias", (False,), "its graph has no biases in convolutions"),
    ),
    tensors=_SHARED,
)
EXPERTS = replace(
    DENSE,
    name="lfm2moe",
    classes=("Lfm2MoeForCausalLM",),
    defaults={
        **_DEFAULTS,
        "moe_intermediate_size": 1792,
        "num_dense_layers": 2,
        "num_experts_per_tok": 4,
        "num_experts": 32,
    },
    metadata=_expert_metadata,
    requirements=(
        *DENSE.requirements,
        Requirement("norm_topk_prob", (True,), "its graph normalises the chosen experts' weights"),
        Requirement("use_expert_bias", (True,), "its graph adds a bias to choose experts"),
        Requirement("routed_scaling_factor", (1,), "its graph does not scale experts"),
    ),
    tensors=(
        *_SHARED,
        *restricted(
            (
                router_rule(LAYER + "feed_forward.gate.weight"),
                TensorRule("blk.{i}.exp_probs_b.bias", LAYER + "feed_forward.expert_bias", "e"),
                *expert_rules(LAYER + "feed_forward.experts.", names=_W),
            ),
            _has_experts,
        ),
    ),
)
_WITH_EYES = "Lfm2VlForConditionalGeneration"
_EXPERTS_WITH_EYES = text_part(EXPERTS, _WITH_EYES)


def _by_text(config: ModelConfig) -> Family | None:
    """LFM 2 VL, dense or with experts."""
    return _EXPERTS_WITH_EYES if config.model_type == "lfm2_moe" else None


WITH_EYES = text_part(DENSE, _WITH_EYES, instead=_by_text)

FAMILIES = (DENSE, EXPERTS, WITH_EYES)
