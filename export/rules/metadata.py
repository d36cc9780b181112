"""The architecture keys that most families share.

General keys (`general.*`) are left to `export.naming`, the vocabulary to `export.tokenizer`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from edgepack.errors import CheckpointError, UnsupportedModelError
from edgepack.export.rules.rope_factors import LONGROPE, rope_number
from edgepack.gguf.types import Value, ValueType, array, f32, string, u32

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edgepack.export.config import ModelConfig

_YARN_BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}
SLIDING_OR_FULL = ("sliding_attention", "full_attention")
PLAIN_ROPE = ("default", "dynamic", "linear", "yarn")
"""Rope types that need no tensor. Dynamic scaling changes nothing within `max_position_embeddings`."""


def common_metadata(
    config: ModelConfig,
    name: str,
    *,
    rope_types: tuple[str, ...] = PLAIN_ROPE,
    window: int | None = None,
    epsilon: str = "rms_norm_eps",
    yarn_betas: bool = False,
    rms: bool = False,
    untruncated: bool = False,
) -> dict[str, Value]:
    """Depth, width, heads, norms, rope and experts of a decoder under the prefix `name`.

    Args:
        config: the configuration.
        name: `general.architecture`.
        rope_types: those that the family's graph honours.
        window: of sliding attention that the graph does not have: the context ends where it would begin to differ.
        epsilon: the key of the norms' epsilon; another than RMSNorm's is one of LayerNorm.
        yarn_betas: the graph reads where yarn's ramp begins and ends.
        rms: it is RMSNorm's whatever its name.
        untruncated: YaRN's ramp may begin and end between two frequencies, which llama.cpp rounds.

    Raises:
        UnsupportedModelError: rope scaling that llama.cpp does not have.
    """
    context = config.count("max_position_embeddings", "n_positions", "n_ctx")
    keys: dict[str, Value] = {
        "block_count": u32(config.n_layers),
        "context_length": u32(min(context, window or context)),
        "embedding_length": u32(config.hidden),
    }
    if config.get("intermediate_size"):
        keys["feed_forward_length"] = u32(config.count("intermediate_size"))
    keys["attention.head_count"] = u32(config.n_heads)
    keys["attention.head_count_kv"] = u32(config.n_kv_heads)
    if rope_types:
        keys |= rope_metadata(config, rope_types, yarn_betas=yarn_betas, untruncated=untruncated)
    kind = "layer_norm_rms" if rms or epsilon == "rms_norm_eps" else "layer_norm"
    keys[f"attention.{kind}_epsilon"] = f32(config.number(epsilon))
    if config.n_experts:
        keys["expert_count"] = u32(config.n_experts)
        keys["expert_used_count"] = u32(config.count("num_experts_per_tok", "top_k_experts"))
    keys["attention.key_length"] = u32(config.head_dim)
    keys["attention.value_length"] = u32(config.head_dim)
    keys["vocab_size"] = u32(config.vocab_size)
    return {f"{name}.{key}": value for key, value in keys.items()}


def attention_window(config: ModelConfig) -> int | None:
    """The window of sliding attention where the configuration switches it on, else None.

    Qwen's files carry a window that `use_sliding_window` switches; Mistral's and Phi's have no switch.
    """
    if not config.flag("use_sliding_window", default=True) or not config.get("sliding_window"):
        return None
    return config.count("sliding_window")


def layer_kinds(config: ModelConfig, known: tuple[str, ...], usual: Callable[[int], str]) -> list[str]:
    """The kind of each layer, from `layer_types`.

    Args:
        config: the configuration.
        known: the kinds that the graph has.
        usual: the kind of layer i where the configuration has no list.

    Raises:
        CheckpointError: no list with an entry for each layer.
        UnsupportedModelError: a kind that is not among `known`.
    """
    kinds = config.get("layer_types")
    if kinds is None:
        return [usual(layer) for layer in range(config.n_layers)]
    if not isinstance(kinds, list) or len(kinds) != config.n_layers:
        raise CheckpointError(f"{config.label}: layer_types: expected a list of {config.n_layers}, got {kinds!r}")
    for kind in kinds:
        if kind not in known:
            expected = " or ".join(each.removesuffix("_attention") for each in known)
            raise UnsupportedModelError(f"{config.label}: layer_types: expected {expected}, got {kind!r}")
    return kinds


def sliding_metadata(config: ModelConfig, period: int) -> dict[str, Value]:
    """Window of sliding attention and the layers that have it, without the prefix.

    Args:
        config: with `layer_types`, or the older `sliding_window_pattern`.
        period: every so many layers one attends to everything, where the configuration has neither.

    Raises:
        CheckpointError: `layer_types` is no list with an entry for each layer.
        UnsupportedModelError: a kind of layer that is neither sliding nor full.
    """
    period = config.count("sliding_window_pattern", "_sliding_window_pattern", default=period)
    kinds = layer_kinds(config, SLIDING_OR_FULL, lambda layer: SLIDING_OR_FULL[(layer + 1) % period == 0])
    slides = [kind == "sliding_attention" for kind in kinds]
    return {
        "attention.sliding_window": u32(config.count("sliding_window")),
        "attention.sliding_window_pattern": array(ValueType.BOOL, slides),
    }


def refuse_own_sliding_rope(config: ModelConfig) -> None:
    """For graphs that turn sliding layers by the base of the others, and do not scale them.

    Raises:
        UnsupportedModelError: sliding layers have a base of their own, or scaling.
    """
    rope, base = config.sliding_rope, config.rope.get("rope_theta")
    if rope.get("rope_type", "default") != "default" or rope.get("rope_theta", base) != base:
        raise UnsupportedModelError(
            f"{config.label}: rope_parameters.sliding_attention is {dict(rope)!r}: llama.cpp needs the base of full"
            " layers and no scaling, because its graph knows no other"
        )


def rope_metadata(
    config: ModelConfig, types: tuple[str, ...] = PLAIN_ROPE, *, yarn_betas: bool = False, untruncated: bool = False
) -> dict[str, Value]:
    """Rope width, base and scaling, without the prefix.

    Args:
        config: the configuration.
        types: those that the family's graph honours.
        yarn_betas: as `common_metadata`.
        untruncated: as `common_metadata`.

    Raises:
        UnsupportedModelError: a scaling type that is not among `types`, or a setting of it that llama.cpp ignores.
    """
    rope = config.rope
    keys: dict[str, Value] = {
        "rope.dimension_count": u32(config.rotary_dim),
        "rope.freq_base": f32(rope_number(rope, "rope_theta", config, default=10000.0)),
    }
    kind = rope.get("rope_type") or "default"
    if kind not in types:
        raise UnsupportedModelError(
            f"{config.label}: rope type is {kind!r}: llama.cpp needs {' or '.join(map(repr, types))},"
            " because its graph of this architecture knows no other"
        )
    if kind == "linear":
        keys |= {"rope.scaling.type": string(kind), "rope.scaling.factor": f32(rope_number(rope, "factor", config))}
    if kind == "yarn":
        keys |= _yarn(config, betas=yarn_betas, untruncated=untruncated)
    return keys | (_longrope(config) if kind in LONGROPE else {})


def yarn_stretch(config: ModelConfig) -> tuple[float, float]:
    """The context before scaling, and the factor by which scaling stretches it."""
    rope, context = config.rope, config.count("max_position_embeddings")
    original = rope_number(rope, "original_max_position_embeddings", config, default=context)
    return original, rope_number(rope, "factor", config, default=context / original)


def yarn_magnitude(factor: float, scale: float = 1.0) -> float:
    """YaRN's growth of attention logits (`get_mscale` of transformers and llama.cpp)."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _yarn(config: ModelConfig, *, betas: bool, untruncated: bool) -> dict[str, Value]:
    """YaRN, as `_compute_yarn_parameters` of transformers has it.

    llama.cpp multiplies by `yarn_magnitude(factor)` of its own accord, and reads the factor for the rest from
    `rope.scaling.attn_factor` (not from `yarn_attn_factor`, which it computes anew).
    """
    rope = config.rope
    _refuse_ignored_yarn({**rope, "truncate": None} if untruncated else rope, config, betas=betas)
    original, factor = yarn_stretch(config)
    written = {f"rope.scaling.yarn_{key}": rope_number(rope, key, config, fixed) for key, fixed in _YARN_BETAS.items()}
    return {
        "rope.scaling.type": string("yarn"),
        "rope.scaling.factor": f32(factor),
        "rope.scaling.original_context_length": u32(int(original)),
        "rope.scaling.attn_factor": f32(rope_growth(config) / yarn_magnitude(factor)),
        **({key: f32(value) for key, value in written.items()} if betas else {}),
    }


def rope_growth(config: ModelConfig) -> float:
    """What yarn multiplies rope by: the configuration's own factor, what its `mscale`s give, or the usual growth."""
    rope, (_, factor) = config.rope, yarn_stretch(config)
    if rope.get("attention_factor") is not None:
        return rope_number(rope, "attention_factor", config)
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        scales = (rope_number(rope, key, config) for key in ("mscale", "mscale_all_dim"))
        above, below = (yarn_magnitude(factor, scale) for scale in scales)
        return above / below
    return yarn_magnitude(factor)


def _refuse_ignored_yarn(rope: Mapping[str, Any], config: ModelConfig, *, betas: bool) -> None:
    for key, fixed in (({} if betas else _YARN_BETAS) | {"truncate": True}).items():
        if rope.get(key) is not None and rope[key] != fixed:
            raise UnsupportedModelError(
                f"{config.label}: rope_parameters.{key} is {rope[key]!r}: llama.cpp needs {fixed!r},"
                " because its yarn knows no other value"
            )


def _longrope(config: ModelConfig) -> dict[str, Value]:
    """Longrope's scalars, as `_compute_longrope_parameters` of transformers has them; its lists are tensors."""
    rope = config.rope
    original, factor = yarn_stretch(config)
    usual = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return {
        "rope.scaling.type": string("longrope"),
        "rope.scaling.original_context_length": u32(int(original)),
        "rope.scaling.attn_factor": f32(rope_number(rope, "attention_factor", config, default=usual)),
    }
