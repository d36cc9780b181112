"""Frequency factors of scaled rope, as the tensors that llama.cpp reads; scalar settings are metadata's."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from edgepack.export.config import ModelConfig
    from numpy.typing import NDArray

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
    factor, low, high, original = (_number(rope, key, config) for key in _LLAMA3_KEYS)
    base = _number(rope, "rope_theta", config, default=10000.0)
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


def _number(rope: Mapping[str, Any], key: str, config: ModelConfig, default: float | None = None) -> float:
    value = rope.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise CheckpointError(f"{config.label}: rope_parameters.{key}: expected a positive number, got {value!r}")
    return float(value)
