"""Granite: Llama's graph with multipliers; with experts, with a shared one, and Granite 4's layers of Mamba 2."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgepack.errors import CheckpointError, UnsupportedModelError
from edgepack.export.architectures.llama import FAMILY as LLAMA
from edgepack.export.arranged_rows import SlicedRows
from edgepack.export.rules.backwards import Backwards
from edgepack.export.rules.decoder import LAYER, both, restricted
from edgepack.export.rules.experts import halves_of_experts
from edgepack.export.rules.family import Family, Origin, Requirement, TensorRule, standard_dimensions
from edgepack.export.rules.metadata import PLAIN_ROPE, common_metadata, layer_kinds
from edgepack.export.rules.state_space import NO_LIMIT, mamba2_dimensions, mamba2_metadata, mamba2_rules
from edgepack.gguf.types import Value, ValueType, array, boolean, f32, u32

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.export.rows import Rows
    from edgepack.export.rules.backwards import Header, Settings

_SCALES = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
_ATTENDING = ("attention", "full_attention")
_KINDS = (*_ATTENDING, "mamba", "linear_attention")


def _metadata_of(config: ModelConfig, name: str) -> dict[str, Value]:
    scales = {f"{name}.{ours}": _scale(config, theirs) for ours, theirs in _SCALES.items()}
    return common_metadata(config, name, rope_types=(*PLAIN_ROPE, "llama3")) | scales


def _metadata(config: ModelConfig) -> dict[str, Value]:
    return _metadata_of(config, "granite")


def _scale(config: ModelConfig, key: str) -> Value:
    value = config.number(key, default=1.0)
    if value <= 0:
        raise UnsupportedModelError(f"{config.label}: {key} is {value}: llama.cpp takes zero for an absent key")
    return f32(value)


def _shared_width(config: ModelConfig) -> int:
    return config.count("shared_intermediate_size") if config.get("shared_intermediate_size") else 0


def _expert_metadata(config: ModelConfig) -> dict[str, Value]:
    shared = {"granitemoe.expert_shared_feed_forward_length": u32(_shared_width(config))}
    return _metadata_of(config, "granitemoe") | (shared if _shared_width(config) else {})


def _dense_metadata(config: ModelConfig) -> dict[str, Value]:
    return _metadata_of(config, "granite") | {
        "granite.feed_forward_length": u32(_shared_width(config)),
        "granite.rope.scaling.finetuned": boolean(_has_rope(config)),
    }


def _has_rope(config: ModelConfig) -> bool:
    return bool(config.get("position_embedding_type") == "rope")


def _kinds(config: ModelConfig) -> list[str]:
    listed = config.get("layer_types", "layers_block_type")
    return layer_kinds(replace(config, values={**config.values, "layer_types": listed}), _KINDS, lambda _layer: "mamba")


def _attends(config: ModelConfig, layer: int) -> bool:
    return _kinds(config)[layer] in _ATTENDING


def _recurs(config: ModelConfig, layer: int) -> bool:
    return not _attends(config, layer)


def _mixer(config: ModelConfig) -> dict[str, int]:
    heads, inner = config.count("mamba_n_heads"), 2 * config.hidden
    width = config.get("mamba_d_head")
    if inner % heads or (isinstance(width, int) and width * heads != inner):
        raise CheckpointError(f"{config.label}: {heads} heads of {width} do not make {inner} channels")
    return {
        "kernel": config.count("mamba_d_conv"),
        "state": config.count("mamba_d_state"),
        "heads": heads,
        "groups": _groups(config),
        "inner": inner,
    }


def _groups(config: ModelConfig) -> int:
    return config.count("mamba_n_groups")


def _hybrid_metadata(config: ModelConfig) -> dict[str, Value]:
    kv_heads = [config.n_kv_heads if _attends(config, layer) else 0 for layer in range(config.n_layers)]
    keys: dict[str, Value] = {
        "attention.head_count_kv": array(ValueType.UINT32, kv_heads),
        "rope.scaling.finetuned": boolean(_has_rope(config)),
        **mamba2_metadata(**_mixer(config)),
    }
    if config.n_experts:
        keys["expert_shared_feed_forward_length"] = u32(_shared_width(config))
    else:
        keys["feed_forward_length"] = u32(_shared_width(config))
    return _metadata_of(config, "granitehybrid") | {f"granitehybrid.{key}": value for key, value in keys.items()}


def _dimensions(config: ModelConfig) -> dict[str, int]:
    return standard_dimensions(config.with_defaults({"intermediate_size": 1})) | {"shared": _shared_width(config)}


def _hybrid_dimensions(config: ModelConfig) -> dict[str, int]:
    return _dimensions(config) | mamba2_dimensions(**_mixer(config))


def _has_experts(config: ModelConfig, _layer: int) -> bool:
    return config.n_experts > 0


def _is_dense(config: ModelConfig, _layer: int) -> bool:
    return not config.n_experts


def _shares(config: ModelConfig, _layer: int) -> bool:
    return _shared_width(config) > 0


def _gate(rows: Rows, config: ModelConfig) -> Rows:
    return SlicedRows(rows, 0, min(_shared_width(config), rows.shape[0]))


def _up(rows: Rows, config: ModelConfig) -> Rows:
    return SlicedRows(rows, min(_shared_width(config), rows.shape[0]), rows.shape[0])


def _shared_rules(suffix: str) -> tuple[TensorRule, ...]:
    """A feed-forward network whose gate and up are one matrix in the checkpoint."""
    module = LAYER + "shared_mlp."
    return (
        TensorRule(f"blk.{{i}}.ffn_gate{suffix}.weight", module + "input_linear.weight", "shared d", _gate),
        TensorRule(f"blk.{{i}}.ffn_up{suffix}.weight", module + "input_linear.weight", "shared d", _up),
        TensorRule(f"blk.{{i}}.ffn_down{suffix}.weight", module + "output_linear.weight", "d shared"),
    )


_MOE = LAYER + "block_sparse_moe."
_EXPERTS = (
    TensorRule(
        "blk.{i}.ffn_gate_inp.weight",
        _MOE + "router.layer.weight",
        "e d",
        alternatives=(Origin(_MOE + "router.weight"),),
    ),
    *halves_of_experts((_MOE + "input_linear.weight", _MOE + "experts.gate_up_proj")),
    TensorRule(
        "blk.{i}.ffn_down_exps.weight",
        _MOE + "output_linear.weight",
        "e d ff",
        alternatives=(Origin(_MOE + "experts.down_proj"),),
    ),
)


def _is_attention(rule: TensorRule) -> bool:
    return ".attn_" in rule.target and "norm" not in rule.target


def _is_feed_forward(rule: TensorRule) -> bool:
    return any(f".ffn_{part}." in rule.target for part in ("gate", "up", "down"))


_TRUNK = tuple(rule for rule in LLAMA.tensors if not _is_feed_forward(rule))

FAMILY = Family(
    name="granite",
    classes=("GraniteForCausalLM",),
    defaults=LLAMA.defaults,
    metadata=_metadata,
    computed=LLAMA.computed,
    requirements=LLAMA.requirements,
    tensors=LLAMA.tensors,
)
EXPERTS = replace(
    FAMILY,
    name="granitemoe",
    classes=("GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"),
    defaults={**LLAMA.defaults, "num_local_experts": 8, "num_experts_per_tok": 2},
    metadata=_expert_metadata,
    dimensions=_dimensions,
    tensors=(*_TRUNK, *_EXPERTS, *restricted(_shared_rules("_shexp"), _shares)),
)
DENSE_4 = replace(
    FAMILY,
    classes=(),
    metadata=_dense_metadata,
    dimensions=_dimensions,
    tensors=(*_TRUNK, *_shared_rules("")),
)
EXPERTS_4 = replace(
    EXPERTS,
    classes=(),
    requirements=(
        *EXPERTS.requirements,
        Requirement("position_embedding_type", ("rope",), "its graph without Mamba turns heads", absent_is_fine=False),
    ),
)


def _without_mamba(config: ModelConfig) -> Family | None:
    """Granite 4 without a layer of Mamba: llama.cpp's graphs of Granite 3."""
    if not all(_attends(config, layer) for layer in range(config.n_layers)):
        return None
    return EXPERTS_4 if config.n_experts else DENSE_4


def _settings(header: Header) -> Settings:
    heads = max(1, header.count("ssm.time_step_rank"))
    attends = header.flags("attention.head_count_kv")
    return {
        "layer_types": [("linear_attention", "full_attention")[each] for each in attends],
        "mamba_d_head": header.count("ssm.inner_size") // heads,
        "position_embedding_type": "rope" if header.get("rope.scaling.finetuned") else None,
        "shared_intermediate_size": header.count("expert_shared_feed_forward_length")
        or header.count("feed_forward_length"),
        "num_local_experts": header.count("expert_count"),
    }


HYBRID = replace(
    FAMILY,
    name="granitehybrid",
    classes=("GraniteMoeHybridForCausalLM",),
    instead=_without_mamba,
    defaults={
        **LLAMA.defaults,
        "shared_intermediate_size": 1024,
        "mamba_n_heads": 128,
        "mamba_n_groups": 1,
        "mamba_d_state": 256,
        "mamba_d_conv": 4,
    },
    metadata=_hybrid_metadata,
    backwards=Backwards(_settings),
    dimensions=_hybrid_dimensions,
    requirements=(
        *LLAMA.requirements,
        Requirement("mamba_expand", (2,), "its graph's mixers are twice as wide as the rest"),
        Requirement("mamba_conv_bias", (True,), "its graph adds a bias after the convolution"),
        Requirement("mamba_proj_bias", (False,), "its graph has no biases around the mixer"),
        NO_LIMIT,
    ),
    tensors=(
        *(replace(rule, when=both(_attends, rule.when)) if _is_attention(rule) else rule for rule in _TRUNK),
        *mamba2_rules(LAYER + "mamba.", _groups, _recurs),
        *restricted(_EXPERTS, _has_experts),
        *restricted(_shared_rules("_shexp"), _has_experts),
        *restricted(_shared_rules(""), _is_dense),
    ),
)
FAMILIES = (FAMILY, EXPERTS, HYBRID)
