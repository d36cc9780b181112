"""A checkpoint as a model that learns, and back: its weights of now, read or kept under the checkpoint's names.

How it learns is `loop`'s.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgepack.model import OverriddenTensors, TensorSpec, read_tensor
from edgepack.quant.calibration.blocks import BlockwiseModel
from edgepack.quant.calibration.checkpoint_names import StackedTensors, checkpoint_names
from edgepack.quant.passes.array_folder import ArrayFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from edgepack.model import Checkpoint


def trainable_model(checkpoint: Checkpoint, device: str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model of transformers with a checkpoint's weights in memory, every one a parameter; tied weights are one.

    Raises:
        EdgepackError: as `BlockwiseModel`.
    """
    blockwise = BlockwiseModel(checkpoint, device, dtype)
    blockwise.load(blockwise.model, "")
    model = blockwise.model
    model.tie_weights()
    model.requires_grad_(True)
    return model


@dataclass(frozen=True)
class LiveTensors:
    """The weights of a model as they are now, under the checkpoint's names: a `TensorSource`.

    Attributes:
        checkpoint: what the model was made of; tensors that the model lacks are read from it.
        model: of `trainable_model`, with whatever parameters were added.
        value: what a tensor [out, in] … is now, of its path and parameter; None for the parameter itself.
    """

    checkpoint: Checkpoint
    model: nn.Module
    value: Callable[[str, torch.Tensor], torch.Tensor] | None = None
    _places: dict[str, tuple[str, int | None, int, int]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        specs = self.checkpoint.tensors.specs
        for path, name, stack in _names(self.model, self.checkpoint):
            if stack is None:
                self._places[name] = (path, None, 0, specs[name].rows)
                continue
            for expert, parts in enumerate(stack):
                start = 0
                for part in parts:
                    self._places[part] = (path, expert, start, start + specs[part].rows)
                    start += specs[part].rows

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The checkpoint's, those of the model as `f32`."""
        base = self.checkpoint.tensors.specs
        return {n: TensorSpec(n, spec.shape, "f32") if n in self._places else spec for n, spec in base.items()}

    @property
    def names(self) -> list[str]:
        """The tensors that the model holds, in the checkpoint's order."""
        return [name for name in self.checkpoint.tensors.specs if name in self._places]

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """As `TensorSource.read_rows`."""
        if name not in self._places:
            return self.checkpoint.tensors.read_rows(name, start, stop)
        path, expert, first, last = self._places[name]
        with torch.no_grad():
            parameter = self.model.get_parameter(path)
            whole = parameter if self.value is None else self.value(path, parameter)
            whole = whole if expert is None else whole[expert]
            rows = whole.reshape(-1, whole.shape[-1])[first:last][start:stop]
            return np.array(rows.float().cpu().numpy(), dtype=np.float32)


def live_checkpoint(
    checkpoint: Checkpoint, model: nn.Module, value: Callable[[str, torch.Tensor], torch.Tensor] | None = None
) -> Checkpoint:
    """The checkpoint with a model's weights in place of its own, read when they are asked for."""
    return replace(checkpoint, tensors=LiveTensors(checkpoint, model, value))


def kept_checkpoint(
    checkpoint: Checkpoint,
    model: nn.Module,
    folder: Path,
    value: Callable[[str, torch.Tensor], torch.Tensor] | None = None,
) -> Checkpoint:
    """The checkpoint with every tensor that a model has changed, kept in a folder; does not modify `checkpoint`.

    Args:
        checkpoint: what the model was made of.
        model: may be let go of afterwards.
        folder: must outlive the checkpoint.
        value: as in `LiveTensors`.
    """
    live, changed = LiveTensors(checkpoint, model, value), ArrayFolder(folder)
    for name in live.names:
        now = read_tensor(live, name)
        if not np.array_equal(now, read_tensor(checkpoint.tensors, name)):
            changed.put(name, now, checkpoint.tensors.specs[name].dtype)
    return replace(checkpoint, tensors=OverriddenTensors(checkpoint.tensors, changed))


def parameter_names(model: nn.Module, checkpoint: Checkpoint) -> dict[str, str]:
    """Path of a parameter → its name in the checkpoint; stacks of experts, and paths of no tensor, are left out."""
    return {path: name for path, name, stack in _names(model, checkpoint) if stack is None}


def _names(model: nn.Module, checkpoint: Checkpoint) -> list[tuple[str, str, list[list[str]] | None]]:
    """(path, name, parts of a stack of experts or None) of every parameter that is the checkpoint's."""
    names, source = checkpoint_names(model, checkpoint.tensors)
    stacks = source.stacks if isinstance(source, StackedTensors) else {}
    return [(path, name, stacks.get(name)) for path, name in names.items()]
