"""Attention through latents (MLA): keys and values of all heads from one narrow vector, rope beside it.

Families choose from these rules and add their keys; what yarn does to the scale of attention is here too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import UnsupportedModelError
from edgepack.export.arranged_rows import PermutedRows, ReshapedRows, SlicedExperts
from edgepack.export.expert_rows import TransposedExperts
from edgepack.export.rules.decoder import LAYER
from edgepack.export.rules.family import TensorRule, standard_dimensions
from edgepack.export.rules.metadata import rope_growth, yarn_magnitude, yarn_stretch
from edgepack.export.rules.permutations import interleaved_order
from edgepack.export.rules.rope_backwards import rope_settings
from edgepack.export.rules.rope_factors import rope_number
from edgepack.gguf.types import Value, f32

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.export.rows import Rows
    from edgepack.export.rules.backwards import Header

NORM_EPSILON = 1e-6  # of the latents' norms in transformers, whatever `rms_norm_eps` says


def with_rope_heads(config: ModelConfig) -> ModelConfig:
    """The same with the part of a head that rope turns as its width."""
    return config.changed(head_dim=config.count("qk_rope_head_dim"))


def query_width(config: ModelConfig) -> int:
    """Elements of a query head: without rope, then with."""
    return config.count("qk_nope_head_dim") + config.count("qk_rope_head_dim")


def has_query_latent(config: ModelConfig, _layer: int = 0) -> bool:
    """Whether queries come through a latent too."""
    return config.get("q_lora_rank") is not None


def latent_dimensions(config: ModelConfig) -> dict[str, int]:
    """`standard_dimensions` and n heads; ql, kvl latents; hq query heads; kva, kvb matrices; nope, hv a head's."""
    nope, value = config.count("qk_nope_head_dim"), config.count("v_head_dim")
    heads, latent = config.n_heads, config.count("kv_lora_rank")
    return standard_dimensions(with_rope_heads(config)) | {
        "n": heads,
        "ql": config.count("q_lora_rank") if has_query_latent(config) else 0,
        "kvl": latent,
        "hq": heads * query_width(config),
        "kva": latent + config.count("qk_rope_head_dim"),
        "kvb": heads * (nope + value),
        "nope": nope,
        "hv": value,
        "values": heads * value,
    }


def latent_rules(*, split: bool) -> tuple[TensorRule, ...]:
    """The projections and the latents' norms.

    Args:
        split: the matrix that makes keys and values is written as two stacks of heads, the keys' transposed, so
            that llama.cpp can leave the latent as it is in its cache.
    """
    attention = LAYER + "self_attn."
    both = attention + "kv_b_proj.weight"
    keys_and_values = (
        (
            TensorRule("blk.{i}.attn_k_b.weight", both, "n kvl nope", _keys),
            TensorRule("blk.{i}.attn_v_b.weight", both, "n hv kvl", _values),
        )
        if split
        else (TensorRule("blk.{i}.attn_kv_b.weight", both, "kvb kvl"),)
    )
    return (
        TensorRule("blk.{i}.attn_q.weight", attention + "q_proj.weight", "hq d", _turned_queries, when=_direct),
        TensorRule("blk.{i}.attn_q_a.weight", attention + "q_a_proj.weight", "ql d", when=has_query_latent),
        TensorRule("blk.{i}.attn_q_a_norm.weight", attention + "q_a_layernorm.weight", "ql", when=has_query_latent),
        TensorRule(
            "blk.{i}.attn_q_b.weight", attention + "q_b_proj.weight", "hq ql", _turned_queries, when=has_query_latent
        ),
        TensorRule("blk.{i}.attn_kv_a_mqa.weight", attention + "kv_a_proj_with_mqa.weight", "kva d", _turned_keys),
        TensorRule("blk.{i}.attn_kv_a_norm.weight", attention + "kv_a_layernorm.weight", "kvl"),
        *keys_and_values,
        TensorRule("blk.{i}.attn_output.weight", attention + "o_proj.weight", "d values"),
    )


def _direct(config: ModelConfig, layer: int) -> bool:
    return not has_query_latent(config, layer)


def _heads(rows: Rows, config: ModelConfig) -> Rows:
    """HF: [heads · (keys + values), latent] → [heads, keys + values, latent]."""
    per = config.count("qk_nope_head_dim") + config.count("v_head_dim")
    if len(rows.shape) != 2 or rows.shape[0] != config.n_heads * per:
        raise UnsupportedModelError(
            f"kv_b_proj: expected {config.n_heads * per} rows, got {list(rows.shape)}: other shapes cannot be split"
        )
    return ReshapedRows(rows, (config.n_heads, per, rows.shape[1]))


def _keys(rows: Rows, config: ModelConfig) -> Rows:
    """→ ggml: [heads, latent, keys]."""
    return TransposedExperts(SlicedExperts(_heads(rows, config), 0, config.count("qk_nope_head_dim")))


def _values(rows: Rows, config: ModelConfig) -> Rows:
    """→ ggml: [heads, values, latent]."""
    heads = _heads(rows, config)
    return SlicedExperts(heads, config.count("qk_nope_head_dim"), heads.shape[1])


def _turned(rows: Rows, config: ModelConfig, heads: int, fixed: int) -> Rows:
    """Rows of rope, which stand behind `fixed` others in each of `heads`, from halves to pairs where need be."""
    turned = config.count("qk_rope_head_dim")
    if config.flag("rope_interleave", default=True) or rows.shape[0] != heads * (fixed + turned):
        return rows
    one = np.concatenate((np.arange(fixed), fixed + interleaved_order(1, turned)))
    order = (np.arange(heads)[:, None] * (fixed + turned) + one).reshape(-1)
    return PermutedRows(rows, order)


def _turned_queries(rows: Rows, config: ModelConfig) -> Rows:
    return _turned(rows, config, config.n_heads, config.count("qk_nope_head_dim"))


def _turned_keys(rows: Rows, config: ModelConfig) -> Rows:
    return _turned(rows, config, 1, config.count("kv_lora_rank"))


def yarn_scales(config: ModelConfig) -> dict[str, Value]:
    """Yarn's two factors: what rope is multiplied by, and what the scale of attention is, squared.

    transformers multiplies rope by r (`rope_growth`) and attention by m², m = 1 + 0.1 · mscale_all_dim · ln(factor).
    llama.cpp's deepseek2 takes r from `attn_factor`, and for attention (r · (1 + 0.1 · x · ln(factor)))², where x is
    ten times `yarn_log_multiplier`; where that is absent it multiplies rope once more by 1 + 0.1 · ln(factor).
    """
    if config.rope.get("rope_type") != "yarn":
        return {}
    _, factor = yarn_stretch(config)
    growth = rope_growth(config)
    wanted = yarn_magnitude(factor, _all_dim(config)) if _all_dim(config) else 1.0
    logarithm = math.log(factor) if factor > 1 else 0.0
    if wanted == growth or not logarithm:
        return {"rope.scaling.attn_factor": f32(growth / yarn_magnitude(factor))}
    return {
        "rope.scaling.attn_factor": f32(growth),
        "rope.scaling.yarn_log_multiplier": f32((wanted / growth - 1) / logarithm),
    }


def latent_settings(header: Header) -> dict[str, Any]:
    """What the metadata of an architecture with split latents imply of config.json."""
    turned = header.count("rope.dimension_count")
    return {
        "q_lora_rank": header.count("attention.q_lora_rank") or None,
        "qk_rope_head_dim": turned,
        "qk_nope_head_dim": header.count("attention.key_length_mla") - turned,
        "v_head_dim": header.count("attention.value_length_mla"),
        "rope_parameters": _rope_parameters(header, turned),
    }


def _rope_parameters(header: Header, turned: int) -> dict[str, Any]:
    """`yarn_scales` read backwards: growth of rope and scale of attention as transformers' two factors."""
    found = rope_settings(header, turned)
    if found["rope_type"] != "yarn":
        return found
    stated, factor = header.exact("rope.scaling.attn_factor", 1.0), found["factor"]
    logarithm = math.log(factor) if factor > 1 else 0.0
    multiplier = header.get("rope.scaling.yarn_log_multiplier")
    growth = stated * (yarn_magnitude(factor) if multiplier is None else 1.0)
    wanted = growth if multiplier is None else growth * (1 + multiplier * logarithm)
    found["attention_factor"] = float(f"{growth:.7g}")
    if wanted != 1 and logarithm:
        found["mscale_all_dim"] = (wanted - 1) / (0.1 * logarithm)
    return found


def _all_dim(config: ModelConfig) -> float:
    return rope_number(config.rope, "mscale_all_dim", config) if config.rope.get("mscale_all_dim") else 0.0


def latent_limits(config: ModelConfig) -> tuple[str, ...]:
    """That llama.cpp's norms of the latents have the epsilon of the others, where it is not transformers'."""
    epsilon = config.number("rms_norm_eps")
    if epsilon == NORM_EPSILON:
        return ()
    return (f"norms of latents: llama.cpp takes rms_norm_eps ({epsilon:g}), transformers {NORM_EPSILON:g}",)
