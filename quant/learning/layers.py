"""What single blocks of a running model give: their output, and the queries, keys and values of attention.

Where a block keeps its projections is read off transformers' own names. What is done with it is left to `objectives`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepack.errors import UnsupportedModelError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from typing_extensions import Self

_SEPARATE = ("q_proj", "k_proj", "v_proj")
QUERIES, KEYS, VALUES = "queries", "keys", "values"
_PARTS = (QUERIES, KEYS, VALUES)


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """The list of a model's transformer blocks, adapters around it or not.

    Raises:
        UnsupportedModelError: there is none.
    """
    from torch import nn

    count = model.config.get_text_config().num_hidden_layers
    for _path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise UnsupportedModelError(f"model type '{model.config.model_type}': found no list of transformer blocks")


class LayerProbe:
    """Keeps what chosen blocks give in each forward, for the length of a `with` block.

    Args:
        model: transformers' causal language model.
        relations: the block, from 0, whose queries, keys and values are kept; None for none.
        hidden: blocks whose output is kept.

    Raises:
        UsageError: the model has no such block.
        UnsupportedModelError: attention without separate projections for queries, keys and values.
    """

    def __init__(self, model: nn.Module, relations: int | None, hidden: tuple[int, ...]) -> None:
        self._found: dict[str, torch.Tensor] = {}
        self._modules: dict[str, nn.Module] = {}
        if relations is None and not hidden:
            return
        blocks = blocks_of(model)
        wrong = [each for each in (*hidden, *([] if relations is None else [relations])) if not 0 <= each < len(blocks)]
        if wrong:
            raise UsageError(f"learning: expected a block from 0 to {len(blocks) - 1}, got {wrong[0]}")
        if relations is not None:
            self._modules |= _projections(blocks[relations], model)
        self._modules |= {f"hidden_{number}": blocks[number] for number in hidden}

    def __enter__(self) -> Self:
        self._handles = [module.register_forward_hook(self._keeper(key)) for key, module in self._modules.items()]
        return self

    def __exit__(self, *_exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def take(self) -> dict[str, torch.Tensor]:
        """What the last forward gave: key → [batch, length, width]."""
        found, self._found = self._found, {}
        return found

    def _keeper(self, key: str) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self._found[key] = output[0] if isinstance(output, tuple) else output

        return keep


def _projections(block: nn.Module, model: nn.Module) -> dict[str, nn.Module]:
    by_name = {path.rpartition(".")[2]: module for path, module in block.named_modules()}
    if not all(name in by_name for name in _SEPARATE):
        kind = model.config.model_type
        raise UnsupportedModelError(f"model type '{kind}': attention relations need {', '.join(_SEPARATE)} in a block")
    return {part: by_name[name] for part, name in zip(_PARTS, _SEPARATE, strict=True)}
