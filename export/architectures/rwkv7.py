"""RWKV 7 as flash-linear-attention writes it: a recurrent state with rules of its own for forgetting."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from edgepack.export.row_functions import RefoldedRows
from edgepack.export.rules.family import Family, Requirement, TensorRule
from edgepack.gguf.types import Value, f32, u32

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.export.rows import Rows

_CONTEXT = 2**20  # a state has no end; the converter's number
_LAYER = "model.layers.{i}."
_MIX = _LAYER + "attn."
_GROUP_EPSILON = 64e-5  # of the norm of every head, in rwkv7-base.cpp
_RANKS = {
    "decay": ("decay_low_rank_dim", 0.5, 1.8),
    "iclr": ("a_low_rank_dim", 0.5, 1.8),
    "value_residual_mix": ("v_low_rank_dim", 0.5, 1.3),
    "gate": ("gate_low_rank_dim", 0.8, 0.6),
}


def _rank(config: ModelConfig, part: str) -> int:
    """The rank of a part; by the width, in steps of 32, where the configuration has none."""
    key, exponent, factor = _RANKS[part]
    return config.count(key, default=max(1, round(config.hidden**exponent * factor / 32)) * 32)


def _inner(config: ModelConfig) -> int:
    return config.count("intermediate_size", default=4 * config.hidden)


def _metadata(config: ModelConfig) -> dict[str, Value]:
    keys: dict[str, Value] = {
        "block_count": u32(config.n_layers),
        "context_length": u32(_CONTEXT),
        "embedding_length": u32(config.hidden),
        "feed_forward_length": u32(_inner(config)),
        "attention.head_count": u32(0),
        "attention.layer_norm_epsilon": f32(config.number("norm_eps")),
        "wkv.head_size": u32(config.count("head_dim")),
        "vocab_size": u32(config.vocab_size),
        **{f"attention.{part}_lora_rank": u32(_rank(config, part)) for part in _RANKS},
    }
    return {f"rwkv7.{key}": value for key, value in keys.items()}


def _dimensions(config: ModelConfig) -> dict[str, int]:
    return {
        "d": config.hidden,
        "v": config.vocab_size,
        "ff": _inner(config),
        "rw": _rank(config, "decay"),
        "ra": _rank(config, "iclr"),
        "rv": _rank(config, "value_residual_mix"),
        "rg": _rank(config, "gate"),
    }


def _epsilon(config: ModelConfig) -> tuple[Any, ...]:
    wanted = _GROUP_EPSILON / config.count("head_dim")
    value = config.get("norm_eps")
    return (value,) if isinstance(value, float) and abs(value / wanted - 1) < 1e-6 else (wanted,)


def _flat(rows: Rows, _config: ModelConfig) -> Rows:
    """HF: [heads, width] or [1, 1, d] → ggml: {d}."""
    return rows if len(rows.shape) == 1 else RefoldedRows(rows, (prod(rows.shape),))


def _as_lerp(rows: Rows, config: ModelConfig) -> Rows:
    """HF: [d] or [1, 1, d] → ggml: {d, 1, 1}, of which six are stacked."""
    return RefoldedRows(rows, (1, 1, config.hidden))


def _not_first(_config: ModelConfig, layer: int) -> bool:
    return layer > 0


def _first(_config: ModelConfig, layer: int) -> bool:
    return layer == 0


def _low_rank(part: str, rank: str, source: str | None = None, when: Any = None) -> tuple[TensorRule, ...]:
    """A bias and two factors."""
    lora = f"{_MIX}{source or part}_lora.lora."
    return (
        TensorRule(f"blk.{{i}}.time_mix_{part}0.weight", lora + "2.bias", "d", when=when),
        TensorRule(f"blk.{{i}}.time_mix_{part}1.weight", lora + "0.weight", f"{rank} d", when=when),
        TensorRule(f"blk.{{i}}.time_mix_{part}2.weight", lora + "2.weight", f"d {rank}", when=when),
    )


def _norm(target: str, source: str, when: Any = None) -> tuple[TensorRule, ...]:
    return tuple(TensorRule(f"{target}.{kind}", f"{source}.{kind}", "d", when=when) for kind in ("weight", "bias"))


FAMILY = Family(
    name="rwkv7",
    classes=("RWKV7ForCausalLM",),
    defaults={"norm_eps": 1e-5, "head_dim": 64},
    metadata=_metadata,
    dimensions=_dimensions,
    tied_head=None,
    requirements=(
        Requirement("hidden_act", ("sqrelu",), "its graph squares what ReLU gives"),
        Requirement("tie_word_embeddings", (False,), "its graph needs a head of its own"),
        Requirement("norm_first", (True,), "its graph has a norm before the first layer"),
        Requirement("norm_bias", (True,), "its norms have biases"),
        Requirement("attn", (None,), "its graph has no layers of attention"),
        Requirement("norm_eps", _epsilon, "its graph divides heads with an epsilon of 0.00064"),
    ),
    tensors=(
        TensorRule("token_embd.weight", "model.embeddings.weight", "v d"),
        *_norm("token_embd_norm", "model.layers.0.pre_norm"),
        *_norm("output_norm", "model.norm"),
        TensorRule("output.weight", "lm_head.weight", "v d"),
        *_norm("blk.{i}.attn_norm", _LAYER + "attn_norm"),
        *_norm("blk.{i}.attn_norm_2", _LAYER + "ffn_norm"),
        *_low_rank("w", "rw"),
        *_low_rank("a", "ra"),
        *_low_rank("v", "rv", when=_not_first),
        *_low_rank("v", "ra", source="a", when=_first),  # which llama.cpp wants and never reads
        TensorRule("blk.{i}.time_mix_g1.weight", _MIX + "g_lora.lora.0.weight", "rg d"),
        TensorRule("blk.{i}.time_mix_g2.weight", _MIX + "g_lora.lora.2.weight", "d rg"),
        TensorRule(
            "blk.{i}.time_mix_lerp_fused.weight",
            tuple(f"{_MIX}x_{part}" for part in "rwkvag"),
            "6 1 1 d",
            _as_lerp,
            stacked=True,
        ),
        *(TensorRule(f"blk.{{i}}.time_mix_{name}.weight", _MIX + name, "d", _flat) for name in ("k_k", "k_a", "r_k")),
        *(
            TensorRule(f"blk.{{i}}.time_mix_{ours}.weight", f"{_MIX}{theirs}_proj.weight", "d d")
            for ours, theirs in (("receptance", "r"), ("key", "k"), ("value", "v"), ("output", "o"))
        ),
        *_norm("blk.{i}.time_mix_ln", _MIX + "g_norm"),
        TensorRule("blk.{i}.channel_mix_lerp_k.weight", _LAYER + "ffn.x_k", "d", _flat),
        TensorRule("blk.{i}.channel_mix_key.weight", _LAYER + "ffn.key.weight", "ff d"),
        TensorRule("blk.{i}.channel_mix_value.weight", _LAYER + "ffn.value.weight", "d ff"),
    ),
)
