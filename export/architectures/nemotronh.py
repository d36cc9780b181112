"""Nemotron-H and Nemotron 3: layers of one thing each: Mamba 2, attention without positions, a network or experts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgepack.errors import CheckpointError
from edgepack.export.rules.backwards import Backwards
from edgepack.export.rules.decoder import attention_rules, relocated, restricted
from edgepack.export.rules.family import Family, Origin, Requirement, TensorRule, standard_dimensions
from edgepack.export.rules.metadata import common_metadata, layer_kinds
from edgepack.export.rules.state_space import mamba2_dimensions, mamba2_metadata, mamba2_rules
from edgepack.gguf.types import Value, ValueType, array, boolean, f32, u32

if TYPE_CHECKING:
    from collections.abc import Collection

    from edgepack.export.config import ModelConfig
    from edgepack.export.rules.backwards import Header, Settings

_MAMBA, _ATTENTION, _MLP, _MOE = _KINDS = ("linear_attention", "full_attention", "mlp", "moe")
_LETTERS = {"M": _MAMBA, "*": _ATTENTION, "-": _MLP, "E": _MOE}
_OLD_KINDS = {"mamba": _MAMBA, "attention": _ATTENTION}
_OLD_KEYS = {
    "n_groups": "mamba_n_groups",
    "conv_kernel": "mamba_d_conv",
    "use_conv_bias": "mamba_conv_bias",
    "head_dim": "attention_head_dim",
}
_LAYER, _SELF = "backbone.layers.{i}.", "model.layers.{i}.self_attn."
_MIXER = _LAYER + "mixer."
_PREDICTED = "mtp.layers."
_TELLING = (("ssm_in.weight", _MAMBA), ("attn_q.weight", _ATTENTION), ("ffn_gate_inp.weight", _MOE))


def _derived(config: ModelConfig) -> dict[str, Any]:
    """Kinds of layers from letters or old names, and keys of remote code, as transformers 5 has them."""
    found = {ours: config.get(old) for ours, old in _OLD_KEYS.items() if config.get(old) is not None}
    kinds = config.get("hybrid_override_pattern", "layers_block_type", "layer_types")
    if isinstance(kinds, str):
        kinds = [_LETTERS.get(letter, letter) for letter in kinds]
    if isinstance(kinds, list):
        kinds = [_OLD_KINDS.get(kind, kind) if isinstance(kind, str) else kind for kind in kinds]
        found |= {"layer_types": kinds, "num_hidden_layers": len(kinds)}
    return found


def _kinds(config: ModelConfig) -> list[str]:
    return layer_kinds(config, _KINDS, lambda layer: _KINDS[layer % 2])


def _n_predicted(config: ModelConfig) -> int:
    return config.bounded("layers of prediction", 1, _COUNT) if config.get(_COUNT) not in (None, 0) else 0


_COUNT = "num_nextn_predict_layers"


def _observed(names: Collection[str]) -> dict[str, int]:
    """Whether the checkpoint has a layer of prediction; transformers writes none."""
    return {_COUNT: int(any(name.startswith(_PREDICTED) for name in names))}


def _blocks(config: ModelConfig) -> int:
    return config.n_layers + _n_predicted(config)


def _is(kind: str) -> Any:
    return lambda config, layer: layer < config.n_layers and _kinds(config)[layer] == kind


def _predicts(config: ModelConfig, layer: int) -> bool:
    return layer >= config.n_layers


def _in_trunk(config: ModelConfig, layer: int) -> bool:
    return layer < config.n_layers


def _groups(config: ModelConfig) -> int:
    return config.count("n_groups")


def _mixer(config: ModelConfig) -> dict[str, int]:
    inner = config.count("mamba_num_heads") * config.count("mamba_head_dim")
    if inner % _groups(config):
        raise CheckpointError(f"{config.label}: {inner} channels are not a multiple of {_groups(config)} groups")
    return {
        "kernel": config.count("conv_kernel"),
        "state": config.count("ssm_state_size"),
        "heads": config.count("mamba_num_heads"),
        "groups": _groups(config),
        "inner": inner,
    }


def _per_block(config: ModelConfig, kind: str, value: int) -> Value:
    """`value` for blocks of a kind, and for one of prediction, which is attention and experts in one."""
    own = [value if each == kind else 0 for each in _kinds(config)]
    return array(ValueType.UINT32, own + [value] * _n_predicted(config))


def _keys(config: ModelConfig, name: str, kind: str, width: int) -> dict[str, Value]:
    keys: dict[str, Value] = {
        "block_count": u32(_blocks(config)),
        "attention.head_count_kv": _per_block(config, _ATTENTION, config.n_kv_heads),
        "feed_forward_length": _per_block(config, kind, width),
        # the second is the trunk's, the first a norm's that only layers of prediction have; llama.cpp wants it always
        "attention.layer_norm_epsilon": f32(config.number("layer_norm_epsilon")),
        "attention.layer_norm_rms_epsilon": f32(config.number("layer_norm_epsilon")),
        **mamba2_metadata(**_mixer(config)),
    }
    common = common_metadata(config, name, rope_types=(), epsilon="layer_norm_epsilon", rms=True)
    return common | {f"{name}.{key}": value for key, value in keys.items()}


def _dense_metadata(config: ModelConfig) -> dict[str, Value]:
    name = "nemotron_h"
    keys = _keys(config, name, _MLP, config.count("intermediate_size"))
    return {key: value for key, value in keys.items() if ".expert_" not in key}


def _expert_metadata(config: ModelConfig) -> dict[str, Value]:
    name, width = "nemotron_h_moe", config.count("moe_intermediate_size")
    keys: dict[str, Value] = {
        "expert_feed_forward_length": u32(width),
        "expert_shared_feed_forward_length": u32(config.count("moe_shared_expert_intermediate_size")),
        "expert_shared_count": u32(config.count("n_shared_experts")),
        "expert_weights_norm": boolean(config.flag("norm_topk_prob", default=True)),
        "expert_weights_scale": f32(config.number("routed_scaling_factor")),
        "expert_group_count": u32(config.count("n_group")),
        "expert_group_used_count": u32(config.count("topk_group")),
    }
    if _n_predicted(config):
        keys["nextn_predict_layers"] = u32(_n_predicted(config))
    if _is_latent(config, 0):
        keys["moe_latent_size"] = u32(config.count("moe_latent_size"))
    return _keys(config, name, _MOE, width) | {f"{name}.{key}": value for key, value in keys.items()}


def _dimensions(config: ModelConfig) -> dict[str, int]:
    sizes = standard_dimensions(config) | mamba2_dimensions(**_mixer(config))
    if _MOE in _kinds(config):
        sizes |= {
            "moe": config.count("moe_intermediate_size"),
            "shared": config.count("moe_shared_expert_intermediate_size"),
            "latent": config.count("moe_latent_size") if _is_latent(config, 0) else config.hidden,
            "2d": 2 * config.hidden,
        }
    return sizes


def _is_latent(config: ModelConfig, _layer: int) -> bool:
    return config.get("moe_latent_size") is not None


def _remarks(config: ModelConfig) -> tuple[str, ...]:
    least = config.number("time_step_min", default=0.001)
    return (f"mamba: transformers makes no step smaller than {least}, llama.cpp does",) if least > 0 else ()


def _attention(prefix: str) -> tuple[TensorRule, ...]:
    return relocated(attention_rules(bias=False), prefix, before=_SELF)


def _experts(prefix: str) -> tuple[TensorRule, ...]:
    """Experts without gates, in a space of their own where the model has one, and a shared expert."""
    expert = prefix + "experts."
    return (
        TensorRule("blk.{i}.ffn_gate_inp.weight", prefix + "gate.weight", "e d"),
        TensorRule("blk.{i}.exp_probs_b.bias", prefix + "gate.e_score_correction_bias", "e"),
        TensorRule(
            "blk.{i}.ffn_up_exps.weight",
            expert + "{e}.up_proj.weight",
            "e moe latent",
            alternatives=(Origin(expert + "up_proj"),),
        ),
        TensorRule(
            "blk.{i}.ffn_down_exps.weight",
            expert + "{e}.down_proj.weight",
            "e latent moe",
            alternatives=(Origin(expert + "down_proj"),),
        ),
        TensorRule("blk.{i}.ffn_up_shexp.weight", prefix + "shared_experts.up_proj.weight", "shared d"),
        TensorRule("blk.{i}.ffn_down_shexp.weight", prefix + "shared_experts.down_proj.weight", "d shared"),
        TensorRule("blk.{i}.ffn_latent_down.weight", prefix + "fc1_latent_proj.weight", "latent d", when=_is_latent),
        TensorRule("blk.{i}.ffn_latent_up.weight", prefix + "fc2_latent_proj.weight", "d latent", when=_is_latent),
    )


_PREDICTION = (
    TensorRule("blk.{i}.nextn.enorm.weight", _PREDICTED + "0.enorm.weight", "d"),
    TensorRule("blk.{i}.nextn.hnorm.weight", _PREDICTED + "0.hnorm.weight", "d"),
    TensorRule("blk.{i}.nextn.eh_proj.weight", _PREDICTED + "0.eh_proj.weight", "d 2d"),
    TensorRule("blk.{i}.nextn.shared_head_norm.weight", _PREDICTED + "1.final_layernorm.weight", "d"),
    TensorRule("blk.{i}.attn_norm.weight", _PREDICTED + "0.norm.weight", "d"),
    TensorRule("blk.{i}.post_attention_norm.weight", _PREDICTED + "1.norm.weight", "d"),
    *_attention(_PREDICTED + "0.mixer."),
    *_experts(_PREDICTED + "1.mixer."),
)
_TRUNK = (
    TensorRule("token_embd.weight", "backbone.embeddings.weight", "v d"),
    TensorRule("output_norm.weight", "backbone.norm_f.weight", "d"),
    TensorRule("output.weight", "lm_head.weight", "v d"),
    TensorRule("blk.{i}.attn_norm.weight", _LAYER + "norm.weight", "d", when=_in_trunk),
    *mamba2_rules(_MIXER, _groups, _is(_MAMBA)),
    *restricted(_attention(_MIXER), _is(_ATTENTION)),
)
_DENSE = tuple(
    TensorRule(f"blk.{{i}}.ffn_{part}.{kind}", f"{_MIXER}{part}_proj.{kind}", shape, optional=kind == "bias")
    for part, kind, shape in (
        ("up", "weight", "ff d"),
        ("down", "weight", "d ff"),
        ("up", "bias", "ff"),
        ("down", "bias", "d"),
    )
)


def _without_experts(config: ModelConfig) -> Family | None:
    kinds = _derived(config).get("layer_types") or []
    return None if _MOE in kinds else DENSE


def _settings(header: Header) -> Settings:
    """A layer is what its tensors are of."""
    layers = range(header.count("block_count"))
    kinds = [next((kind for part, kind in _TELLING if f"blk.{n}.{part}" in header.shapes), _MLP) for n in layers]
    heads = max(1, header.count("ssm.time_step_rank"))
    return {
        "layer_types": kinds,
        "layers_block_type": kinds,
        "mamba_head_dim": header.count("ssm.inner_size") // heads,
        "moe_latent_size": header.get("moe_latent_size"),
        "head_dim": header.count("attention.key_length"),
    }


EXPERTS = Family(
    name="nemotron_h_moe",
    classes=("NemotronHForCausalLM",),
    instead=_without_experts,
    defaults={
        "num_key_value_heads": 8,
        "max_position_embeddings": 4096,
        "layer_norm_epsilon": 1e-5,
        "ssm_state_size": 128,
        "mamba_num_heads": 128,
        "mamba_head_dim": 64,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "routed_scaling_factor": 1.0,
        "n_group": 1,
        "topk_group": 1,
    },
    derived=_derived,
    observed=_observed,
    blocks=_blocks,
    remarks=_remarks,
    metadata=_expert_metadata,
    backwards=Backwards(_settings, architectures=("nemotron_h",)),
    dimensions=_dimensions,
    tied_head=None,  # transformers ties nothing, whatever the configuration says
    renames=(("backbone.", "model."), ("backbone.embeddings.", "backbone.embedding.")),
    requirements=(
        Requirement("mlp_hidden_act", ("relu2",), "its graph squares what ReLU gives"),
        Requirement("mamba_hidden_act", ("silu",), "its graph uses SiLU"),
        Requirement("use_conv_bias", (True,), "its graph adds a bias after the convolution"),
        Requirement("use_bias", (False,), "its graph has no biases around the mixer"),
        Requirement("mamba_proj_bias", (False,), "its graph has no biases around the mixer"),
        Requirement("attention_bias", (False,), "its graph has no biases in attention"),
        Requirement("sliding_window", (None,), "its graph attends to everything"),
        Requirement("mlp_bias", (False,), "its graph has no biases in experts"),
        Requirement(
            "layer_types",
            lambda config: ("without 'mlp'",) if _MLP in _kinds(config) else (config.get("layer_types"),),
            "in its graph every feed-forward layer has experts where one has",
        ),
    ),
    tensors=(
        *_TRUNK,
        *restricted(_experts(_MIXER), _is(_MOE)),
        *restricted(_PREDICTION, _predicts),
    ),
)
DENSE = replace(
    EXPERTS,
    name="nemotron_h",
    classes=(),
    metadata=_dense_metadata,
    requirements=EXPERTS.requirements[:-2],
    tensors=(*_TRUNK, *restricted(_DENSE, _is(_MLP))),
)
FAMILIES = (EXPERTS,)
