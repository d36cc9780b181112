"""Gemma 4, text part: full layers with heads of their own, shared keys and values, embeddings by layer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import CheckpointError, UnsupportedModelError
from edgepack.export.architectures.gemma2 import NORMS
from edgepack.export.rows import ArrayRows
from edgepack.export.rules.backwards import Backwards
from edgepack.export.rules.decoder import (
    GELU,
    LAYER,
    NO_ATTENTION_BIAS,
    attention_rules,
    embedding_rules,
    feed_forward_rules,
    head_norm_rules,
    norm_rules,
    resized,
    restricted,
)
from edgepack.export.rules.family import BUFFERS, Family, Requirement, TensorRule, standard_dimensions
from edgepack.export.rules.metadata import SLIDING_OR_FULL, common_metadata, layer_kinds
from edgepack.export.rules.per_layer import (
    PER_LAYER_RULES,
    has_keys,
    n_shared,
    per_layer_dimensions,
    shares_as_llama_cpp,
)
from edgepack.export.rules.rope_factors import rope_number
from edgepack.gguf.types import Value, ValueType, array, f32, u32

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.export.rows import Rows
    from edgepack.export.rules.backwards import Header, Settings

_NEVER = 1e30  # what llama.cpp divides a frequency by that is not to turn
_FULL = {"q": "gq", "kv": "gkv", "h": "gh"}


def _kinds(config: ModelConfig) -> list[str]:
    """The kind of each layer; transformers makes the last one full, whatever the list says."""
    kinds = layer_kinds(config, SLIDING_OR_FULL, lambda layer: SLIDING_OR_FULL[(layer + 1) % 6 == 0])
    return [*kinds[:-1], "full_attention"]


def _slides(config: ModelConfig, layer: int) -> bool:
    return _kinds(config)[layer] == "sliding_attention"


def _is_full(config: ModelConfig, layer: int) -> bool:
    return not _slides(config, layer)


def _has_values(config: ModelConfig, layer: int) -> bool:
    return has_keys(config, layer) and not (config.flag("attention_k_eq_v") and _is_full(config, layer))


def _is_wide(config: ModelConfig, layer: int) -> bool:
    return config.flag("use_double_wide_mlp") and not has_keys(config, layer)


def _is_narrow(config: ModelConfig, layer: int) -> bool:
    return not _is_wide(config, layer)


def _per_layer(config: ModelConfig, _layer: int) -> bool:
    return bool(config.get("hidden_size_per_layer_input"))


def _has_experts(config: ModelConfig, _layer: int) -> bool:
    return config.flag("enable_moe_block")


def _of_full_layers(config: ModelConfig, key: str) -> int | None:
    """A setting that full layers have of their own: in `per_layer_config`, as transformers 5 writes it."""
    layers = config.get("per_layer_config")
    if layers is None:
        return None
    settings = layers.values() if isinstance(layers, dict) else [layers]
    full = {str(layer) for layer in range(config.n_layers) if _is_full(config, layer)}
    if not isinstance(layers, dict) or not full >= set(layers) or not all(isinstance(each, dict) for each in settings):
        raise UnsupportedModelError(f"{config.label}: per_layer_config: expected settings of full layers alone")
    if any(each != next(iter(settings)) for each in settings) or (layers and len(layers) != len(full)):
        raise UnsupportedModelError(f"{config.label}: per_layer_config: expected the same for every full layer")
    for each in settings:
        value = each.get(key)
        if value is not None and (type(value) is not int or value <= 0):
            raise CheckpointError(f"{config.label}: per_layer_config: {key}: expected a count, got {value!r}")
        return value
    return None


def _full_head_dim(config: ModelConfig) -> int:
    if config.get("per_layer_config") is not None:
        return _of_full_layers(config, "head_dim") or config.head_dim
    return config.count("global_head_dim", default=512)


def _full_kv_heads(config: ModelConfig) -> int:
    own = _of_full_layers(config, "num_key_value_heads")
    if own is None and config.flag("attention_k_eq_v") and config.get("num_global_key_value_heads"):
        own = config.count("num_global_key_value_heads")
    return config.n_kv_heads if own is None else own


def _metadata(config: ModelConfig) -> dict[str, Value]:
    common = common_metadata(config, "gemma4", rope_types=("default", "proportional"))
    return common | {f"gemma4.{key}": value for key, value in _own_metadata(config).items()}


def _own_metadata(config: ModelConfig) -> dict[str, Value]:
    layers = range(config.n_layers)
    slides = [_slides(config, layer) for layer in layers]
    kv_heads = [config.n_kv_heads if each else _full_kv_heads(config) for each in slides]
    widths = [config.count("intermediate_size") * (2 if _is_wide(config, layer) else 1) for layer in layers]
    keys: dict[str, Value] = {
        "attention.head_count_kv": array(ValueType.UINT32, kv_heads),
        "feed_forward_length": array(ValueType.UINT32, widths),
        "attention.sliding_window": u32(config.count("sliding_window")),
        "attention.sliding_window_pattern": array(ValueType.BOOL, slides),
        "attention.shared_kv_layers": u32(n_shared(config)),
        "embedding_length_per_layer_input": u32(_width_per_layer(config)),
        # llama.cpp caps at 30 where the key is absent
        "final_logit_softcapping": f32(config.number("final_logit_softcapping", default=0.0)),
        "rope.freq_base_swa": f32(rope_number(config.sliding_rope, "rope_theta", config, default=10000.0)),
        "rope.dimension_count": u32(_full_head_dim(config)),
        "rope.dimension_count_swa": u32(config.head_dim),
    }
    for part in ("key", "value"):
        keys |= {
            f"attention.{part}_length": u32(_full_head_dim(config)),
            f"attention.{part}_length_swa": u32(config.head_dim),
        }
    if _has_experts(config, 0):
        keys["expert_feed_forward_length"] = u32(config.count("moe_intermediate_size"))
    return keys


def _width_per_layer(config: ModelConfig) -> int:
    return config.count("hidden_size_per_layer_input") if _per_layer(config, 0) else 0


def _dimensions(config: ModelConfig) -> dict[str, int]:
    head = _full_head_dim(config)
    sizes = standard_dimensions(config) | {
        "gh": head,
        "gq": config.n_heads * head,
        "gkv": _full_kv_heads(config) * head,
        "2ff": 2 * config.count("intermediate_size"),
    }
    if _per_layer(config, 0):
        sizes |= per_layer_dimensions(config)
    if _has_experts(config, 0):
        sizes |= {"moe": config.count("moe_intermediate_size"), "2moe": 2 * config.count("moe_intermediate_size")}
    return sizes


def _computed(config: ModelConfig) -> dict[str, Rows]:
    """Of full layers: proportional rope turns the first pairs of a head as if it turned all.

    Source: `_compute_proportional_rope_parameters` of transformers' modeling_rope_utils.py.
    """
    rope, half = config.rope, _full_head_dim(config) // 2
    part = rope_number(rope, "partial_rotary_factor", config, default=1.0)
    turned = int(part * _full_head_dim(config) // 2) if rope.get("rope_type") == "proportional" else half
    if turned > half:
        raise CheckpointError(f"{config.label}: partial_rotary_factor: expected a number up to 1, got {part!r}")
    factors = np.full(half, _NEVER, dtype=np.float32)
    factors[:turned] = rope_number(rope, "factor", config, default=1.0)
    return {"rope_freqs.weight": ArrayRows(factors)}


def _shared_keys(config: ModelConfig) -> tuple[str, ...]:
    """Keys and values of layers that take those of an earlier one; published files hold them all the same."""
    layers = "|".join(str(layer) for layer in range(config.n_layers) if not has_keys(config, layer))
    return (rf"\.layers\.({layers})\.self_attn\.[kv]_(proj|norm)\.",) if layers else ()


def _sharable(config: ModelConfig) -> tuple[Any, ...]:
    return (config.get("num_kv_shared_layers"),) if shares_as_llama_cpp(config, _kinds(config)) else (0,)


def _attention(kind: str) -> tuple[TensorRule, ...]:
    """Attention of one kind of layer; k and v only where the layer has its own."""
    when = {"k": has_keys, "v": _has_values}
    rules: list[TensorRule] = []
    for rule in (*attention_rules(bias=False), *head_norm_rules()):
        part = rule.target.removeprefix("blk.{i}.attn_")[0]
        rules += restricted([rule], when[part]) if part in when else [rule]
    return restricted(rules, _slides) if kind == "sliding" else restricted(resized(rules, _FULL), _is_full)


_EXPERTS = (
    TensorRule("blk.{i}.ffn_gate_inp.weight", LAYER + "router.proj.weight", "e d"),
    TensorRule("blk.{i}.ffn_gate_inp.scale", LAYER + "router.scale", "d"),
    TensorRule("blk.{i}.ffn_gate_up_exps.weight", LAYER + "experts.gate_up_proj", "e 2moe d"),
    TensorRule("blk.{i}.ffn_down_exps.weight", LAYER + "experts.down_proj", "e d moe"),
    TensorRule("blk.{i}.ffn_down_exps.scale", LAYER + "router.per_expert_scale", "e"),
    *norm_rules(
        {
            "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
            "post_ffw_norm_1": "post_feedforward_layernorm_1",
            "post_ffw_norm_2": "post_feedforward_layernorm_2",
        }
    ),
)


def _settings(header: Header) -> Settings:
    slides = header.flags("attention.sliding_window_pattern")
    heads, widths = header.get("attention.head_count_kv"), header.get("feed_forward_length")
    full = next((layer for layer, each in enumerate(slides) if not each), 0)
    own = {"head_dim": header.count("attention.key_length")}
    if heads[full] != heads[slides.index(True)]:
        own["num_key_value_heads"] = heads[full]
    return {
        "head_dim": header.count("attention.key_length_swa"),
        "num_key_value_heads": heads[slides.index(True)] if any(slides) else heads[0],
        "per_layer_config": {layer: own for layer, each in enumerate(slides) if not each},
        "intermediate_size": min(widths),
        "use_double_wide_mlp": max(widths) > min(widths),
        "attention_k_eq_v": f"blk.{full}.attn_v.weight" not in header.shapes,
        "enable_moe_block": header.count("expert_count") > 0,
        "num_kv_shared_layers": header.count("attention.shared_kv_layers"),
        "hidden_size_per_layer_input": header.count("embedding_length_per_layer_input"),
        "vocab_size_per_layer_input": header.shapes.get("per_layer_token_embd.weight", (1,))[0],
        "final_logit_softcapping": header.get("final_logit_softcapping") or None,
        "rope_parameters": _ropes(header),
    }


def _ropes(header: Header) -> Settings:
    factors = header.read("rope_freqs.weight")
    turned = factors[factors < _NEVER]
    return {
        "full_attention": {
            "rope_type": "proportional",
            "partial_rotary_factor": len(turned) / len(factors),
            "rope_theta": header.get("rope.freq_base"),
            "factor": float(turned[0]) if len(turned) else 1.0,
        },
        "sliding_attention": {"rope_type": "default", "rope_theta": header.get("rope.freq_base_swa")},
    }


TEXT = Family(
    name="gemma4",
    classes=("Gemma4ForCausalLM",),
    defaults={
        "num_key_value_heads": 4,
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131072,
        "sliding_window": 512,
        "tie_word_embeddings": True,
        "hidden_size_per_layer_input": 256,
        "rope_parameters": {
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    metadata=_metadata,
    backwards=Backwards(_settings),
    dimensions=_dimensions,
    computed=_computed,
    superfluous=_shared_keys,
    requirements=(
        Requirement(("hidden_activation", "hidden_act"), GELU, "its graph uses GELU"),
        NO_ATTENTION_BIAS,
        Requirement("use_bidirectional_attention", ("vision", False), "its graph is causal in text"),
        Requirement(
            "num_kv_shared_layers", _sharable, "its graph shares those of the last full and the sliding layer before"
        ),
    ),
    tensors=(
        *embedding_rules(),
        *norm_rules(NORMS),
        *_attention("sliding"),
        *_attention("full"),
        *restricted(feed_forward_rules(), _is_narrow),
        *restricted(feed_forward_rules(width="2ff"), _is_wide),
        *restricted(_EXPERTS, _has_experts),
        *restricted(PER_LAYER_RULES, _per_layer),
        TensorRule("blk.{i}.layer_output_scale.weight", LAYER + "layer_scalar", "1", optional=True),
    ),
)
MULTIMODAL = replace(
    TEXT,
    classes=("Gemma4ForConditionalGeneration",),
    nested=True,
    renames=(("model.", "model.language_model."),),
    unused=(*BUFFERS, r"^model\.(vision_tower|audio_tower|embed_vision|embed_audio)\."),
)
FAMILIES = (TEXT, MULTIMODAL)
