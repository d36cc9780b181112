"""Rules of selective state spaces: Mamba 2's mixer, which most hybrids have, and Mamba 1's.

Where a layer keeps its mixer and what surrounds it are the families' data in `export.architectures`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from edgepack.export.row_functions import RefoldedRows, as_column, decay_column, decay_rates
from edgepack.export.rules.decoder import squeezed
from edgepack.export.rules.family import Requirement, TensorRule
from edgepack.gguf.types import Value, u32

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgepack.export.config import ModelConfig
    from edgepack.export.rows import Rows

    When = Callable[[ModelConfig, int], bool]

_INFINITY = (math.inf, "inf", "Infinity", {"__float__": "Infinity"})  # as versions of transformers write it


def _unlimited(config: ModelConfig) -> tuple[Any, ...]:
    limit = config.get("time_step_limit")
    unlimited = isinstance(limit, list | tuple) and len(limit) == 2 and limit[0] == 0 and limit[1] in _INFINITY
    return (limit,) if unlimited else ("[0.0, Infinity]",)


NO_LIMIT = Requirement("time_step_limit", _unlimited, "its graph does not limit steps")


def mamba2_metadata(*, kernel: int, state: int, heads: int, groups: int, inner: int) -> dict[str, Value]:
    """Sizes of a mixer, without the prefix.

    Args:
        kernel: width of the convolution.
        state: numbers a channel keeps.
        heads: that share a step.
        groups: that share what is written and read.
        inner: channels.
    """
    return {
        "ssm.conv_kernel": u32(kernel),
        "ssm.state_size": u32(state),
        "ssm.time_step_rank": u32(heads),
        "ssm.group_count": u32(groups),
        "ssm.inner_size": u32(inner),
    }


def mamba2_dimensions(*, kernel: int, state: int, heads: int, groups: int, inner: int) -> dict[str, int]:
    """Si inner · sx the convolution's channels · sp rows of the input projection · sh heads · sg groups · si/g · sk."""
    channels = inner + 2 * groups * state
    return {
        "si": inner,
        "sx": channels,
        "sp": inner + channels + heads,
        "sh": heads,
        "sg": groups,
        "si/g": inner // groups,
        "sk": kernel,
    }


def mamba2_rules(prefix: str, groups: Callable[[ModelConfig], int], when: When | None = None) -> tuple[TensorRule, ...]:
    """Rules of a mixer.

    Args:
        prefix: of its names in the checkpoint.
        groups: in which the norm behind it computes.
        when: as `TensorRule.when`.
    """

    def in_groups(rows: Rows, config: ModelConfig) -> Rows:
        """HF: [inner] → ggml: {inner / groups, groups}."""
        count = groups(config)
        return RefoldedRows(rows, (count, rows.shape[0] // count))

    return (
        TensorRule("blk.{i}.ssm_in.weight", prefix + "in_proj.weight", "sp d", when=when),
        TensorRule("blk.{i}.ssm_conv1d.weight", prefix + "conv1d.weight", "sx sk", squeezed, when=when),
        TensorRule("blk.{i}.ssm_conv1d.bias", prefix + "conv1d.bias", "sx", when=when),
        TensorRule("blk.{i}.ssm_dt.bias", prefix + "dt_bias", "sh", when=when),
        TensorRule("blk.{i}.ssm_a", prefix + "A_log", "sh 1", decay_column, when=when),
        TensorRule("blk.{i}.ssm_d", prefix + "D", "sh 1", as_column, when=when),
        TensorRule("blk.{i}.ssm_norm.weight", prefix + "norm.weight", "sg si/g", in_groups, when=when),
        TensorRule("blk.{i}.ssm_out.weight", prefix + "out_proj.weight", "d si", when=when),
    )


def mamba_rules(prefix: str, when: When | None = None) -> tuple[TensorRule, ...]:
    """Rules of Mamba 1's mixer under `prefix`; dimensions si inner · 2si · sn state · sr rank · sr+2sn · sk kernel."""
    return (
        TensorRule("blk.{i}.ssm_in.weight", prefix + "in_proj.weight", "2si d", when=when),
        TensorRule("blk.{i}.ssm_conv1d.weight", prefix + "conv1d.weight", "si sk", squeezed, when=when),
        TensorRule("blk.{i}.ssm_conv1d.bias", prefix + "conv1d.bias", "si", when=when),
        TensorRule("blk.{i}.ssm_x.weight", prefix + "x_proj.weight", "sr+2sn si", when=when),
        TensorRule("blk.{i}.ssm_dt.weight", prefix + "dt_proj.weight", "si sr", when=when),
        TensorRule("blk.{i}.ssm_dt.bias", prefix + "dt_proj.bias", "si", when=when),
        TensorRule("blk.{i}.ssm_a", prefix + "A_log", "si sn", decay_rates, when=when),
        TensorRule("blk.{i}.ssm_d", prefix + "D", "si", when=when),
        TensorRule("blk.{i}.ssm_out.weight", prefix + "out_proj.weight", "d si", when=when),
    )
