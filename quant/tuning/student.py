"""The model whose weights are a file's: transformers' modules, with tuned tensors where the file has something to tune.

Everything else are the file's weights as floats. The inputs of quantised matrices are rounded as llama.cpp rounds them.
How it learns is left to `loop`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from edgepack.gguf.types import GGMLType
from edgepack.quant.calibration.blocks import BlockwiseModel, is_linear
from edgepack.quant.calibration.checkpoint_names import StackedTensors, checkpoint_names
from edgepack.quant.calibration.empty_model import module_of
from edgepack.quant.passes.awq.rounding import GGMLRounding
from edgepack.quant.tuning.straight_through import in_blocks_of_8_bits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgepack.model import Checkpoint
    from edgepack.quant.tuning.places import Piece, Place
    from edgepack.quant.tuning.tensors import TunedTensor

_HALVES = frozenset({GGMLType.F32, GGMLType.F16, GGMLType.BF16})


class Student:
    """A model that runs with the file's weights as they are now.

    Args:
        checkpoint: the file's weights under the checkpoint's names, with the original's configuration.
        places: where rows of `tensors` lie; checkpoint tensors without a place keep their weights.
        tensors: name in the file → its parameters.
        kinds: name in the checkpoint → the type of the matrix in the file.
        device: a torch device.
        rounds_inputs: whether inputs of quantised matrices are rounded.

    Raises:
        EdgepackError: as `BlockwiseModel`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        places: Sequence[Place],
        tensors: Mapping[str, TunedTensor],
        kinds: Mapping[str, GGMLType],
        *,
        device: str = "cpu",
        rounds_inputs: bool = True,
    ) -> None:
        blockwise = BlockwiseModel(checkpoint, device)
        blockwise.load(blockwise.model, "")
        self.model, self.tensors, self.device = blockwise.model, tensors, torch.device(device)
        for tensor in tensors.values():
            if isinstance(tensor, nn.Module):
                tensor.to(self.device)
        names = _parts_of_parameters(blockwise, checkpoint)
        by_name = {place.name: _Assembly(place, self.device) for place in places}
        self._slots: list[tuple[nn.Module, str, tuple[int, ...], list[_Assembly]]] = []
        for path, parts in names.items():
            if parts and all(part in by_name for part in parts):
                owner, attribute = module_of(self.model, path), path.rpartition(".")[2]
                shape = tuple(owner._parameters[attribute].shape)  # noqa: SLF001
                self._slots.append((owner, attribute, shape, [by_name[part] for part in parts]))
                del owner._parameters[attribute]  # noqa: SLF001
        if rounds_inputs:
            self._round_inputs(names, kinds)

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [batch, length, vocabulary] for tokens [batch, length], with weights as the bytes hold them."""
        self._fill()
        found: torch.Tensor = self.model(input_ids=tokens.to(self.device), use_cache=False).logits
        return found

    def _fill(self) -> None:
        """Put the weights of now into the model's modules."""
        values = {name: tensor.values() for name, tensor in self.tensors.items()}
        made: dict[int, torch.Tensor] = {}
        for owner, attribute, shape, assemblies in self._slots:
            for assembly in assemblies:
                if id(assembly) not in made:
                    made[id(assembly)] = assembly(values)
            parts = [made[id(assembly)] for assembly in assemblies]
            weight = parts[0] if len(parts) == 1 else torch.cat(parts)
            owner.__dict__.pop(attribute, None)
            object.__setattr__(owner, attribute, weight.reshape(shape))

    def empty(self) -> None:
        """Let go of the weights of the last run, and what their gradients need."""
        for owner, attribute, _shape, _assemblies in self._slots:
            owner.__dict__.pop(attribute, None)

    def _round_inputs(self, names: Mapping[str, list[str]], kinds: Mapping[str, GGMLType]) -> None:
        last: list[tuple[Any, int, Any]] = [(None, 0, None)]
        for path, module in self.model.named_modules():
            kind = kinds.get((names.get(f"{path}.weight") or [""])[0])
            if is_linear(module) and kind is not None and kind not in _HALVES:
                module.register_forward_pre_hook(_rounding(GGMLRounding(kind).activation_block, last))


def _rounding(block: int, last: list[tuple[Any, int, Any]]) -> Any:
    """A hook that rounds a module's input; modules that get the same tensor one after the other share one rounding."""

    def round_input(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        seen, width, rounded = last[0]
        if seen is not arguments[0] or width != block:
            rounded = in_blocks_of_8_bits(arguments[0], block)
            last[0] = (arguments[0], block, rounded)
        return (rounded, *arguments[1:])

    return round_input


def _parts_of_parameters(model: BlockwiseModel, checkpoint: Checkpoint) -> dict[str, list[str]]:
    """Path of every parameter → the checkpoint's tensors below each other that it is made of; both ends of a tie."""
    names, source = checkpoint_names(model.model, checkpoint.tensors)
    stacks = source.stacks if isinstance(source, StackedTensors) else {}
    found = {}
    for path, _ in model.model.named_parameters(remove_duplicate=False):
        name = names.get(path) or model.embedding_name
        if name is not None:
            found[path] = [part for parts in stacks[name] for part in parts] if name in stacks else [name]
    return found


class _Assembly:
    """A checkpoint's tensor put together of rows of tuned ones."""

    def __init__(self, place: Place, device: torch.device) -> None:
        self._place = place
        at = np.concatenate([piece.at for piece in place.pieces])
        order = np.argsort(at, kind="stable")
        self._order = None if np.array_equal(order, np.arange(len(at))) else torch.from_numpy(order).to(device)
        self._columns = None if place.columns is None else torch.from_numpy(np.argsort(place.columns)).to(device)
        self._rows = [_index(piece, device) for piece in place.pieces]
        self._factors = [
            None if piece.factors is None else torch.from_numpy(1 / piece.factors)[:, None].to(device)
            for piece in place.pieces
        ]

    def __call__(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        parts = []
        for piece, rows, factors in zip(self._place.pieces, self._rows, self._factors, strict=True):
            part = values[piece.tensor]
            part = part if rows is None else part[rows]
            part = part - piece.shift if piece.shift else part
            parts.append(part if factors is None else part * factors)
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        whole = whole if self._order is None else whole[self._order]
        whole = whole if self._columns is None else whole[:, self._columns]
        return whole.T if self._place.transposed else whole


def _index(piece: Piece, device: torch.device) -> torch.Tensor | None:
    """The rows to take; None for all of them in their order."""
    rows = piece.rows
    if len(rows) and rows[0] == 0 and np.array_equal(rows, np.arange(len(rows))):
        return None if len(rows) == piece.height else torch.from_numpy(rows).to(device)
    return torch.from_numpy(rows).to(device)
