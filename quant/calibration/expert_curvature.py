"""Curvature of experts: each one's from the tokens that reach it, drawn towards the layer's mean where they are few.

An expert's matrices are not modules: products with slices of a stack are seen as torch runs them. What is measured of
other matrices is `curvature`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from edgepack.quant.calibration.products import summed_products

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edgepack.quant.calibration.blocks import Block

_FEW_OUTPUTS = 64  # tokens whose weight the layer's mean square of the gradient has


def expert_stacks(block: Block) -> dict[str, torch.Tensor]:
    """Name → parameter [experts, out, in] of a block."""
    return {
        name: block.module.get_parameter(path)
        for path, name in block.names.items()
        if block.module.get_parameter(path).dim() == 3
    }


class ExpertWatch(TorchFunctionMode):  # type: ignore[misc]  # torch is not followed by mypy
    """While active, tells of each product of activations with one expert's slice of a stack.

    Args:
        stacks: name → parameter.
        seen: called with the stack's name, the expert, the inputs [tokens, in] and the outputs [tokens, out].
    """

    def __init__(
        self, stacks: Mapping[str, torch.Tensor], seen: Callable[[str, int, torch.Tensor, torch.Tensor], None]
    ) -> None:
        super().__init__()
        self._stacks, self._seen = {id(value): (name, value) for name, value in stacks.items()}, seen

    def __torch_function__(self, function: Any, _types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        """Run the function; look at it where it is a linear map by a slice."""
        output = function(*arguments, **(keywords or {}))
        if function is torch.nn.functional.linear and len(arguments) >= 2:
            name, stack = self._stacks.get(id(arguments[1]._base), (None, None))  # noqa: SLF001
            if name is not None and stack is not None:
                expert = arguments[1].storage_offset() // (stack.shape[1] * stack.shape[2])
                self._seen(name, expert, arguments[0], output)
        return output


class ExpertMoments:
    """H of every expert of a stack: sums of x xᵀ, in float32 on the CPU.

    Args:
        experts: how many.
    """

    def __init__(self, experts: int) -> None:
        self._sums: list[torch.Tensor | float] = [0.0] * experts
        self._counts = [0] * experts

    def add(self, expert: int, inputs: torch.Tensor) -> None:
        """Add what an expert received, [tokens, in]."""
        flat = inputs.detach()
        self._sums[expert] = self._sums[expert] + summed_products(flat, flat).float().cpu()
        self._counts[expert] += len(flat)

    def results(self) -> list[torch.Tensor]:
        """H of each expert [in, in], drawn towards the mean of all as if that were as many tokens as it has inputs."""
        total = sum(self._sums)
        if not isinstance(total, torch.Tensor):
            return []
        mean, few = total / sum(self._counts), len(total)
        return [(own + few * mean) / (count + few) for own, count in zip(self._sums, self._counts, strict=True)]


class ExpertSquares:
    """G's diagonal of every expert of a stack, a token of the text: experts that few tokens reach cost little.

    Args:
        experts: how many.
    """

    def __init__(self, experts: int) -> None:
        self._sums: list[torch.Tensor | float] = [0.0] * experts
        self._counts = [0] * experts

    def add(self, expert: int, gradients: torch.Tensor) -> None:
        """Add gradients at an expert's outputs, [tokens, out]."""
        flat = gradients.detach()
        self._sums[expert] = self._sums[expert] + flat.float().square().sum(0).double().cpu()
        self._counts[expert] += len(flat)

    def results(self, tokens: int) -> list[torch.Tensor]:
        """float32 [out] for each expert.

        Args:
            tokens: of the text that was taken back.
        """
        total, routed = sum(self._sums), sum(self._counts)
        if not isinstance(total, torch.Tensor):
            return []
        mean, found = total / routed, []
        for own, count in zip(self._sums, self._counts, strict=True):
            share = (count + _FEW_OUTPUTS * routed / (tokens * len(self._sums))) / (tokens + _FEW_OUTPUTS)
            found.append(((own + _FEW_OUTPUTS * mean) / (count + _FEW_OUTPUTS) * share).float())
        return found
