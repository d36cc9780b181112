"""Rope parameters of config.json from a GGUF's keys and its tensors of frequency factors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import UnsupportedModelError
from edgepack.export.rules.metadata import yarn_magnitude

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.export.rules.backwards import Header

FREQUENCIES, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
_SMOOTH = 4.0  # high_freq_factor over low_freq_factor of published models


def rope_settings(header: Header, head_dim: int) -> dict[str, Any]:
    """`rope_parameters`; where sliding layers have a base of their own, a set for each kind of layer.

    Args:
        header: of the GGUF.
        head_dim: width of a head.

    Raises:
        UnsupportedModelError: factors that no rule of transformers gives.
    """
    base = header.get("rope.freq_base") or 10000.0
    turned = header.count("rope.dimension_count") or head_dim
    found: dict[str, Any] = {"rope_type": "default", "rope_theta": base, "partial_rotary_factor": turned / head_dim}
    kind = header.get("rope.scaling.type")
    if kind == "linear":
        found |= {"rope_type": kind, "factor": header.get("rope.scaling.factor")}
    if kind == "yarn":
        found |= _yarn(header)
    if LONG in header.shapes:
        found |= _longrope(header)
    if FREQUENCIES in header.shapes:
        found |= llama3_parameters(header.read(FREQUENCIES), base, turned)
    sliding = header.get("rope.freq_base_swa")
    if sliding is None:
        return found
    return {"full_attention": found, "sliding_attention": {"rope_type": "default", "rope_theta": sliding}}


def _yarn(header: Header) -> dict[str, Any]:
    """YaRN; what rope grows by where llama.cpp is told of another growth than its own."""
    factor = header.get("rope.scaling.factor")
    found = {"rope_type": "yarn", "factor": factor}
    if header.get("rope.scaling.original_context_length") is not None:
        found["original_max_position_embeddings"] = header.get("rope.scaling.original_context_length")
    for key in ("beta_fast", "beta_slow"):
        if header.get(f"rope.scaling.yarn_{key}") is not None:
            found[key] = header.get(f"rope.scaling.yarn_{key}")
    growth = header.exact("rope.scaling.attn_factor", 1.0)
    if growth != 1:
        found["attention_factor"] = float(f"{growth * yarn_magnitude(factor):.7g}")  # a product of two floats
    return found


def _longrope(header: Header) -> dict[str, Any]:
    original = header.get("rope.scaling.original_context_length")
    return {
        "rope_type": "longrope",
        "long_factor": [float(str(each)) for each in header.read(LONG)],
        "short_factor": [float(str(each)) for each in header.read(SHORT)],
        "original_max_position_embeddings": original,
        "factor": header.count("context_length") / original,
        "attention_factor": header.get("rope.scaling.attn_factor"),
    }


def llama3_parameters(factors: NDArray[np.float32], base: float, turned: int) -> dict[str, Any]:
    """Llama 3's scaling that gives these factors.

    Between kept and divided frequencies 1 / factor is a line in 1 / wavelength (`rules.rope_factors.llama3_factors`):
    slope and intercept give the rest, up to one choice that changes nothing, which is low_freq_factor = 1.

    Args:
        factors: what each frequency is divided by, float32 [turned / 2].
        base: of rope.
        turned: elements of a head that rope turns.

    Raises:
        UnsupportedModelError: no such line.
    """
    waves = 2 * math.pi * base ** (np.arange(0, turned, 2) / turned)
    factor = float(factors.max())
    blended = np.flatnonzero((factors > 1) & (factors < factor))
    if not (factors >= 1).all() or factor == 1:
        raise UnsupportedModelError(f"{FREQUENCIES}: expected factors of 1 and more, got {factors.tolist()[:4]} …")
    smooth = (1 / factors[blended].astype(np.float64) - 1 / factor) / (1 - 1 / factor)
    kept, divided = waves[factors == 1].max(initial=waves.min() / 2), waves[factors == factor].min()
    if len(blended) > 1:
        slope, offset = np.polyfit(1 / waves[blended], smooth, 1)
        ratio = 1 - 1 / offset
        original = slope * (ratio - 1)
    elif len(blended):
        ratio = _SMOOTH
        original = float((smooth[0] * (ratio - 1) + 1) * waves[blended[0]])
    else:
        original, ratio = math.sqrt(kept * divided), 1.0 + 1e-6
    near = {8192, round(original)}
    whole = next((each for each in near if abs(each / original - 1) < 1e-3), round(original))
    return {
        "rope_type": "llama3",
        "factor": float(str(np.float32(factor))),
        "low_freq_factor": 1.0,
        "high_freq_factor": round(ratio, 2) if abs(round(ratio, 2) / ratio - 1) < 1e-3 else ratio,
        "original_max_position_embeddings": whole,
    }
