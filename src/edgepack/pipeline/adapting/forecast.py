"""What a training will take, told before it begins: time by the speed of products now, memory from shapes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from edgepack.pipeline.adapting.settings import Forecast

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.pipeline.adapting.base import Base
    from edgepack.pipeline.adapting.settings import AdaptSettings

_PROCESS = 600 << 20  # torch, transformers and llama.cpp themselves, by measurement
_SIDE = 768  # of the products that are timed
_SHARE = 0.35  # of that speed which whole models reach: by measurement on the 135 M model, two busy cores
# Products of a token through a frozen model with an adapter: forward 2, backward through inputs 2 (per weight).
FORWARD, STEP = 2, 4


def products_a_second(device: str) -> float:
    """Multiplications and additions a second of float32 products, now."""
    import torch

    first = torch.randn(_SIDE, _SIDE, device=device)
    (first @ first).sum().item()
    began, rounds = time.monotonic(), 0
    while time.monotonic() - began < 0.2:
        (first @ first).sum().item()
        rounds += 1
    return 2.0 * rounds * _SIDE**3 / (time.monotonic() - began)


def forecast(
    base: Base, settings: AdaptSettings, tokens: Mapping[str, tuple[int, int]], lora: int, examples: int, steps: int
) -> Forecast:
    """Time and memory.

    Args:
        base: the file.
        settings: of the training.
        tokens: part of the work → (its tokens, products of each for each weight).
        lora: numbers that learn.
        examples: that are learnt from.
        steps: of the optimiser.
    """
    speed = products_a_second(settings.device) * _SHARE
    parts = {name: count * products * base.parameters / speed for name, (count, products) in tokens.items()}
    return Forecast(sum(parts.values()), _memory(base, settings, lora), parts, examples, steps)


def _memory(base: Base, settings: AdaptSettings, lora: int) -> int:
    """Weights in float32, factors with gradient and two moments, what a step keeps between forward and backward."""
    width, blocks = base.width, max(1, base.fact("block_count", 1))
    inner, heads = base.fact("feed_forward_length", 4 * width), base.fact("attention.head_count", 8)
    a_token = blocks * (16 * width + 4 * inner + 3 * heads * settings.length)
    vocabulary = max((info.shape[0] for info in base.header.tensors if info.name == "token_embd.weight"), default=0)
    kept = 4 * settings.batch * settings.length * (a_token + 4 * vocabulary)
    found = _PROCESS + 4 * base.parameters + 16 * lora + kept
    return found if settings.max_memory is None else min(found, settings.max_memory)
