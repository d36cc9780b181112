"""Falcon-H1: attention and a mixer of Mamba 2 side by side in every layer; its many multipliers go into the weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import CheckpointError
from edgepack.export.arranged_rows import ScaledRows
from edgepack.export.row_functions import RowScaledRows
from edgepack.export.rules.backwards import Backwards
from edgepack.export.rules.decoder import (
    LAYER,
    NO_ATTENTION_BIAS,
    SILU,
    WHOLE_HEADS,
    attention_rules,
    feed_forward_rules,
)
from edgepack.export.rules.family import Family, Requirement, TensorRule, standard_dimensions
from edgepack.export.rules.metadata import common_metadata
from edgepack.export.rules.state_space import NO_LIMIT, mamba2_dimensions, mamba2_metadata, mamba2_rules

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgepack.export.config import ModelConfig
    from edgepack.export.rows import Rows
    from edgepack.export.rules.backwards import Header, Settings
    from edgepack.export.rules.family import Transform
    from edgepack.gguf.types import Value

    Factor = Callable[[ModelConfig], float]

_EMBEDDING = "model.embed_tokens.weight"
_MULTIPLIERS = (
    "embedding_multiplier", "lm_head_multiplier", "attention_in_multiplier", "attention_out_multiplier",
    "key_multiplier", "ssm_in_multiplier", "ssm_out_multiplier",
)  # fmt: skip


def _list(config: ModelConfig, key: str, count: int) -> list[float]:
    """Multipliers of several parts; ones where the key is absent.

    Raises:
        CheckpointError: not as many numbers.
    """
    values = config.get(key)
    if values is None:
        return [1.0] * count
    numbers = isinstance(values, list) and all(isinstance(each, int | float) for each in values)
    if not numbers or len(values) != count:
        raise CheckpointError(f"{config.label}: {key}: expected a list of {count} numbers, got {values!r}")
    return [float(each) for each in values]


def _number(*keys: str) -> Factor:
    def product(config: ModelConfig) -> float:
        factor = 1.0
        for key in keys:
            factor *= config.number(key, default=1.0)
        return factor

    return product


def _of_feed_forward(part: int) -> Factor:
    return lambda config: _list(config, "mlp_multipliers", 2)[part]


def _times(factor: Factor) -> Transform:
    return lambda rows, config: ScaledRows(rows, factor(config))


def _into_mixer(rows: Rows, config: ModelConfig) -> Rows:
    """Gate, input, what is written, what is read and steps have a multiplier each, behind the mixer's."""
    sizes = _mixer(config)
    parts = (sizes["inner"], sizes["inner"], *[sizes["groups"] * sizes["state"]] * 2, sizes["heads"])
    factors = np.repeat(np.array(_list(config, "ssm_multipliers", 5), dtype=np.float32), parts)
    return RowScaledRows(rows, factors * np.float32(config.number("ssm_in_multiplier", default=1.0)))


def _inner(config: ModelConfig) -> int:
    return config.count("mamba_d_ssm", default=int(config.number("mamba_expand") * config.hidden))


def _groups(config: ModelConfig) -> int:
    return config.count("mamba_n_groups")


def _mixer(config: ModelConfig) -> dict[str, int]:
    heads, inner, width = config.count("mamba_n_heads"), _inner(config), config.get("mamba_d_head")
    if inner % heads or inner % _groups(config) or (isinstance(width, int) and width * heads != inner):
        raise CheckpointError(f"{config.label}: {heads} heads of {width!r} do not make {inner} channels in groups")
    return {
        "kernel": config.count("mamba_d_conv"),
        "state": config.count("mamba_d_state"),
        "heads": heads,
        "groups": _groups(config),
        "inner": inner,
    }


def _metadata(config: ModelConfig) -> dict[str, Value]:
    sizes = mamba2_metadata(**_mixer(config))
    return common_metadata(config, "falcon-h1") | {f"falcon-h1.{key}": value for key, value in sizes.items()}


def _dimensions(config: ModelConfig) -> dict[str, int]:
    return standard_dimensions(config) | mamba2_dimensions(**_mixer(config))


def _head_differs(config: ModelConfig, _layer: int) -> bool:
    """Whether a tied head has another multiplier than the embedding, so that the file needs both."""
    return config.tied and _number("embedding_multiplier")(config) != _number("lm_head_multiplier")(config)


def _norms_mixers(config: ModelConfig, _layer: int) -> bool:
    return config.flag("mamba_rms_norm")


def _norm_orders(config: ModelConfig) -> tuple[Any, ...]:
    return (False,) if config.flag("mamba_rms_norm") else (True, False)


_FACTORS: dict[str, Factor] = {
    "attn_q.weight": _number("attention_in_multiplier"),
    "attn_k.weight": _number("attention_in_multiplier", "key_multiplier"),
    "attn_v.weight": _number("attention_in_multiplier"),
    "attn_output.weight": _number("attention_out_multiplier"),
    "ffn_gate.weight": _of_feed_forward(0),
    "ffn_down.weight": _of_feed_forward(1),
    "ssm_out.weight": _number("ssm_out_multiplier"),
}


def _multiplied(rule: TensorRule) -> TensorRule:
    """The rule with its tensor's multiplier, and the mixer's norm only where the model has one."""
    name = rule.target.removeprefix("blk.{i}.")
    if name == "ssm_in.weight":
        return replace(rule, transform=_into_mixer)
    if name == "ssm_norm.weight":
        return replace(rule, when=_norms_mixers)
    return replace(rule, transform=_times(_FACTORS[name])) if name in _FACTORS else rule


def _settings(header: Header) -> Settings:
    """Multipliers of one: what they were stands in the weights."""
    inner, heads = header.count("ssm.inner_size"), header.count("ssm.time_step_rank")
    ones: dict[str, Any] = dict.fromkeys(_MULTIPLIERS, 1.0)
    return ones | {
        "mlp_multipliers": [1.0] * 2,
        "ssm_multipliers": [1.0] * 5,
        "mamba_d_ssm": inner,
        "mamba_d_head": inner // max(1, heads),
        "mamba_rms_norm": header.has(".ssm_norm."),
    }


FAMILY = Family(
    name="falcon-h1",
    classes=("FalconH1ForCausalLM",),
    defaults={
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192,
        "mamba_expand": 2,
        "mamba_n_heads": 128,
        "mamba_n_groups": 1,
        "mamba_d_state": 256,
        "mamba_d_conv": 4,
        "mamba_norm_before_gate": True,
    },
    metadata=_metadata,
    backwards=Backwards(_settings),
    dimensions=_dimensions,
    requirements=(
        SILU,
        WHOLE_HEADS,
        NO_ATTENTION_BIAS,
        Requirement("mlp_bias", (False,), "its graph's multipliers are in the weights"),
        Requirement("projectors_bias", (False,), "its graph has no biases around the mixer"),
        Requirement("mamba_proj_bias", (False,), "its graph has no biases around the mixer"),
        Requirement("mamba_conv_bias", (True,), "its graph adds a bias after the convolution"),
        Requirement("mamba_norm_before_gate", _norm_orders, "its graph's norm comes after the gate"),
        NO_LIMIT,
    ),
    tensors=(
        TensorRule("token_embd.weight", _EMBEDDING, "v d", _times(_number("embedding_multiplier"))),
        TensorRule("output_norm.weight", "model.final_layernorm.weight", "d"),
        TensorRule("output.weight", "lm_head.weight", "v d", _times(_number("lm_head_multiplier"))),
        TensorRule("output.weight", _EMBEDDING, "v d", _times(_number("lm_head_multiplier")), when=_head_differs),
        TensorRule("blk.{i}.attn_norm.weight", LAYER + "input_layernorm.weight", "d"),
        TensorRule("blk.{i}.ffn_norm", LAYER + "pre_ff_layernorm.weight", "d"),  # without `.weight` in llama.cpp too
        *map(_multiplied, attention_rules(bias=False)),
        *map(_multiplied, feed_forward_rules(module="feed_forward.")),
        *map(_multiplied, mamba2_rules(LAYER + "mamba.", _groups)),
    ),
)
