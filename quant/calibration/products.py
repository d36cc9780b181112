"""In what type a calibration multiplies: bfloat16 where the model is published in it and the processor is made for it.

What is multiplied is left to `blocks` and `statistics`; sums, norms, residuals and everything else stay float32.
A model in bfloat16 is run so by those who publish it; processors with matrix units for it (AMX, AVX-512 BF16) take two
to five times as long for float32. docs/scale.md has what it gains, and that it costs no divergence.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import torch

from edgepack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgepack.model import Checkpoint

TOLD = "EDGEPACK_PRODUCTS"
"""An environment variable with `float32` or `bfloat16`, to have the same results as on another processor."""
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_DTYPE_KEYS = ("dtype", "torch_dtype")  # of config.json, after and before transformers 4.56
_UNITS = ("amx_bf16", "avx512_bf16")  # as torch.cpu.get_capabilities names them


@cache
def has_bfloat16_units() -> bool:
    """Whether this processor multiplies bfloat16 faster than float32; False where torch (< 2.11) does not know."""
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(bool(known.get(unit)) for unit in _UNITS)


def own_products(checkpoint: Checkpoint, device: str = "cpu") -> torch.dtype:
    """In what type this machine multiplies when it calibrates a checkpoint: `torch.bfloat16` or `torch.float32`.

    Args:
        checkpoint: bfloat16 asks for its configuration saying that it is run so.
        device: a torch device; on others than the processor products are float32.

    Raises:
        UsageError: `EDGEPACK_PRODUCTS`, which decides where it is set, is neither.
    """
    if told := os.environ.get(TOLD):
        if told not in TYPES:
            raise UsageError(f"{TOLD}: expected {' or '.join(TYPES)}, got '{told}'")
        return TYPES[told]
    if torch.device(device).type != "cpu" or not has_bfloat16_units():
        return torch.float32
    configs = (checkpoint.config, checkpoint.config.get("text_config"))
    published = (each.get(key) for each in configs if isinstance(each, Mapping) for key in _DTYPE_KEYS)
    return torch.bfloat16 if "bfloat16" in published else torch.float32


@contextmanager
def layers_multiply_in(products: torch.dtype, device: torch.device) -> Iterator[None]:
    """While open, linear layers and attention of this thread multiply in `products`; float32 changes nothing."""
    if products == torch.float32:
        yield
        return
    with torch.autocast(device.type, products):
        yield


@contextmanager
def sums_stay_float32(products: torch.dtype) -> Iterator[None]:
    """While open, float32 products round their factors to `products`, and sum and give float32, in the whole process.

    For products whose results must not be rounded as autocast does: moments, and logits.
    """
    if products != torch.bfloat16:
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")  # torch's word for bfloat16 factors
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def as_multiplied(inputs: torch.Tensor) -> torch.Tensor:
    """What a linear layer that gets `inputs` now multiplies: rounded where `layers_multiply_in` says so."""
    kind = inputs.device.type
    if inputs.dtype == torch.float32 and torch.is_autocast_enabled(kind):
        return inputs.to(torch.get_autocast_dtype(kind))
    return inputs


def summed_products(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """leftᵀ · right of [tokens, n] and [tokens, m], float32 (float64 of float64), also inside `layers_multiply_in`.

    Where both are bfloat16 they are multiplied as such: exactly, and fast where the processor has units for it.
    """
    exact = torch.bfloat16 if left.dtype == right.dtype == torch.bfloat16 else torch.float32
    wide = [each.float() if each.dtype == torch.bfloat16 else each for each in (left, right)]
    with torch.autocast(left.device.type, enabled=False), sums_stay_float32(exact):
        return wide[0].T @ wide[1]
