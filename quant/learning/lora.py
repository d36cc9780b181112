"""LoRA around a frozen model, by peft: which matrices get factors, and what they have become under checkpoint's names.

Source: LoRA, arXiv 2106.09685. Writing them for llama.cpp is `export.lora`'s.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgepack.errors import DependencyError, UsageError
from edgepack.quant.calibration.blocks import is_linear, is_transposed
from edgepack.quant.learning.layers import blocks_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import nn

_NAME = "default"
_MOST_RANK = 4096


@dataclass(frozen=True)
class LoraSettings:
    """Of one adapter.

    Attributes:
        rank: of the factors.
        alpha: the product is scaled by alpha over the rank.
        modules: ends of the modules' paths that get factors, such as `q_proj`; empty for every projection in the
            blocks.

    Raises:
        UsageError: numbers out of range.
    """

    rank: int = 16
    alpha: float = 16.0
    modules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= _MOST_RANK:
            raise UsageError(f"adapter: expected a rank from 1 to {_MOST_RANK}, got {self.rank}")
        if not 0 < self.alpha < float("inf"):
            raise UsageError(f"adapter: expected an alpha above 0, got {self.alpha}")


def projections(model: nn.Module) -> dict[str, nn.Module]:
    """Path → module of every matrix product inside the blocks."""
    inside = {id(module) for module in blocks_of(model).modules()}
    return {path: module for path, module in model.named_modules() if id(module) in inside and is_linear(module)}


def chosen_projections(model: nn.Module, modules: tuple[str, ...]) -> list[str]:
    """Paths of the projections that get factors.

    Args:
        model: transformers', without adapters.
        modules: as `LoraSettings.modules`.

    Raises:
        UsageError: one that the model lacks; the text lists what it has.
    """
    found = list(projections(model))
    if not modules:
        return found
    for wanted in modules:
        if not any(_ends_with(path, wanted) for path in found):
            has = ", ".join(dict.fromkeys(path.rpartition(".")[2] for path in found))
            raise UsageError(f"adapter: the model has no projection '{wanted}', only {has}")
    return [path for path in found if any(_ends_with(path, wanted) for wanted in modules)]


def _ends_with(path: str, wanted: str) -> bool:
    return path == wanted or path.endswith(f".{wanted}")


def lora_parameters(model: nn.Module, settings: LoraSettings) -> int:
    """How many numbers the factors have; raises as `chosen_projections`."""
    every = projections(model)
    return sum(settings.rank * sum(every[path].weight.shape) for path in chosen_projections(model, settings.modules))


def with_lora(model: nn.Module, settings: LoraSettings, seed: int = 0) -> nn.Module:
    """The model, frozen, with factors that learn; its function is what it was. Modifies `model`.

    Args:
        model: transformers'.
        settings: of the factors.
        seed: of the first factors; the second ones are zero.

    Raises:
        UsageError: as `chosen_projections`.
        DependencyError: peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise DependencyError(f"adapter: needs {error.name}: pip install edgepack[train]") from error
    paths = chosen_projections(model, settings.modules)
    transposed = is_transposed(model.get_submodule(paths[0]))
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, target_modules=paths, lora_dropout=0.0, bias="none",
        fan_in_fan_out=transposed,
    )  # fmt: skip
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for an attribute of the old name
        torch.manual_seed(seed)
        wrapped: nn.Module = get_peft_model(model, config)
    return wrapped


def lora_factors(
    wrapped: nn.Module, names: Mapping[str, str]
) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """What an adapter adds, under the checkpoint's names: float32 (down [rows, rank], up [rank, columns]).

    The scale is in `down`; rows and columns are those of the tensor as the checkpoint stores it.

    Args:
        wrapped: of `with_lora`.
        names: path of each of the model's parameters → its name in the checkpoint.
    """
    found = {}
    for path, module in wrapped.get_base_model().named_modules():
        if not hasattr(module, "lora_A") or _NAME not in module.lora_A:
            continue
        first, second = (_array(getattr(module, part)[_NAME].weight) for part in ("lora_A", "lora_B"))
        down, up = second * np.float32(module.scaling[_NAME]), first
        if is_transposed(module.get_base_layer()):
            down, up = first.T * np.float32(module.scaling[_NAME]), second.T
        found[names[f"{path}.weight"]] = (np.ascontiguousarray(down), np.ascontiguousarray(up))
    return found


def _array(parameter: Any) -> NDArray[np.float32]:
    found: NDArray[np.float32] = parameter.detach().float().cpu().numpy().copy()
    return found
