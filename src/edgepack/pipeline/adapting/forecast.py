"""What a training will take, told before it begins: time by the speed of products now, memory from shapes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.pipeline.adapting.settings import Forecast

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.model import Checkpoint
    from edgepack.pipeline.adapting.settings import AdaptSettings

_PROCESS = 600 << 20  # torch, transformers and llama.cpp themselves: an estimate
_SIDE = 768  # of the products that are timed
_SHARE = 0.35  # of that speed which whole models reach: an estimate, held against no run
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


@dataclass(frozen=True)
class Shape:
    """What decides how long a token takes and what is kept of it.

    Attributes:
        parameters: weights in all.
        width: of the states between blocks.
        blocks: how many.
        inner: width inside the feed-forward.
        heads: of attention.
        vocabulary: tokens.
    """

    parameters: int
    width: int
    blocks: int
    inner: int
    heads: int
    vocabulary: int

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Shape:
        """Read off a checkpoint's configuration and headers, under any of the names that families use."""
        text = checkpoint.config.get("text_config")
        config = text if isinstance(text, dict) else checkpoint.config

        def number(*names: str, default: int = 1) -> int:
            found = (config.get(name) for name in names)
            return next((each for each in found if isinstance(each, int) and each > 0), default)

        width = number("hidden_size", "n_embd", "d_model")
        return cls(
            checkpoint.weight_count, width,
            number("num_hidden_layers", "n_layer", "num_layers"),
            number("intermediate_size", "n_inner", "ffn_dim", default=4 * width),
            number("num_attention_heads", "n_head"), number("vocab_size"),
        )  # fmt: skip


def forecast(
    shape: Shape, settings: AdaptSettings, tokens: Mapping[str, tuple[int, int]], lora: int, examples: int, steps: int
) -> Forecast:
    """Time and memory.

    Args:
        shape: of the model.
        settings: of the training.
        tokens: part of the work → (its tokens, products of each for each weight).
        lora: numbers that learn.
        examples: that are learnt from.
        steps: of the optimiser.
    """
    speed = products_a_second(settings.device) * _SHARE
    parts = {name: count * products * shape.parameters / speed for name, (count, products) in tokens.items()}
    return Forecast(sum(parts.values()), _memory(shape, settings, lora), parts, examples, steps)


def _memory(shape: Shape, settings: AdaptSettings, lora: int) -> int:
    """Weights in float32, factors with gradient and two moments, what a step keeps between forward and backward."""
    a_token = shape.blocks * (16 * shape.width + 4 * shape.inner + 3 * shape.heads * settings.length)
    kept = 4 * settings.batch * settings.length * (a_token + 4 * shape.vocabulary)
    found = _PROCESS + 4 * shape.parameters + 16 * lora + kept
    return found if settings.max_memory is None else min(found, settings.max_memory)
