"""Frequency factors of scaled rope, as the tensors that llama.cpp reads; scalar settings are metadata's."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import CheckpointError
from edgepack.export.rows import ArrayRows

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from numpy.typing import NDArray

    from edgepack.export.config import ModelConfig
    from edgepack.export.rows import Rows

_MOST = 1e38  # a float32 holds no more
LONGROPE = ("longrope", "su")  # "su" is what early Phi-3 files call it
_LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def llama3_factors(config: ModelConfig, rotary_dim: int) -> NDArray[np.float32] | None:
    """What each rope frequency is divided by in Llama 3.1 and later; None without that scaling.

    Source: `_compute_llama3_parameters` of transformers' modeling_rope_utils.py. Frequencies whose wavelength
    is below original context / high factor are kept, those above original context / low factor divided by
    `factor`, those between blended.

    Returns:
        float32, shape [rotary_dim / 2].

    Raises:
        CheckpointError: a key of the scaling is missing.
    """
    rope = config.rope
    if rope.get("rope_type") != "llama3":
        return None
    rope = {"original_max_position_embeddings": config.get("max_position_embeddings"), **rope}
    factor, low, high, original = (rope_number(rope, key, config) for key in _LLAMA3_KEYS)
    base = rope_number(rope, "rope_theta", config, default=10000.0)
    factors = []
    for i in range(0, rotary_dim, 2):
        wavelength = 2 * math.pi * base ** (i / rotary_dim)
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, dtype=np.float32)


def longrope_factors(config: ModelConfig) -> dict[str, NDArray[np.float32]]:
    """`rope_factors_long` and `rope_factors_short` of longrope, float32 [rotary_dim / 2]; empty without it.

    llama.cpp takes the long ones when its context is longer than the original one, transformers when the text is.

    Raises:
        CheckpointError: a list is missing or of the wrong length.
    """
    rope, half = config.rope, config.rotary_dim // 2
    if rope.get("rope_type") not in LONGROPE:
        return {}
    found = {}
    for name in ("long", "short"):
        factors = rope.get(f"{name}_factor")
        if not isinstance(factors, list) or len(factors) != half:
            raise CheckpointError(f"{config.label}: {name}_factor: expected a list of {half} numbers, got {factors!r}")
        found[f"rope_factors_{name}.weight"] = np.array(
            [rope_number({"factor": factor}, "factor", config) for factor in factors], dtype=np.float32
        )
    return found


def rope_number(rope: Mapping[str, Any], key: str, config: ModelConfig, default: float | None = None) -> float:
    """A positive number of the rope parameters.

    Raises:
        CheckpointError: absent without a default, or something else.
    """
    value = default if rope.get(key) is None else rope[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _MOST:
        raise CheckpointError(f"{config.label}: rope_parameters.{key}: expected a positive number, got {value!r:.80}")
    return float(value)


def llama3_tensor(config: ModelConfig) -> dict[str, Rows]:
    """`rope_freqs.weight` where Llama 3's scaling is on; see `llama3_factors`."""
    factors = llama3_factors(config, config.rotary_dim)
    return {} if factors is None else {"rope_freqs.weight": ArrayRows(factors)}


def longrope_tensors(config: ModelConfig) -> dict[str, Rows]:
    """`rope_factors_long.weight` and `rope_factors_short.weight` where longrope is on."""
    return {name: ArrayRows(factors) for name, factors in longrope_factors(config).items()}


def yarn_ramp(config: ModelConfig) -> tuple[float, float] | None:
    """Where YaRN begins and ceases to stretch frequencies, as numbers of pairs; None without it or where whole.

    Source: `_compute_yarn_parameters` of transformers' modeling_rope_utils.py with `truncate` off; llama.cpp rounds
    both (`ggml_rope_yarn_corr_dims`).
    """
    rope = config.rope
    if rope.get("rope_type") != "yarn" or rope.get("truncate") is not False:
        return None
    context = config.get("max_position_embeddings")
    original = rope_number(rope, "original_max_position_embeddings", config, default=context)
    base = rope_number(rope, "rope_theta", config, default=10000.0)

    def pair(rotations: float) -> float:
        return config.rotary_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    fast, slow = (rope_number(rope, key, config, usual) for key, usual in (("beta_fast", 32.0), ("beta_slow", 1.0)))
    return max(pair(fast), 0.0), min(pair(slow), config.rotary_dim - 1.0)


def ramp_remark(config: ModelConfig) -> tuple[str, ...]:
    """What llama.cpp makes of a ramp between two pairs, as `Family.remarks` says it."""
    ramp = yarn_ramp(config)
    if ramp is None:
        return ()
    model, ours = f"{ramp[0]:.2f} to {ramp[1]:.2f}", f"{math.floor(ramp[0])} to {math.ceil(ramp[1])}"
    return (f"rope: the model's YaRN goes from pair {model}, llama.cpp's from {ours}: it knows whole pairs alone",)
