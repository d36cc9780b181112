"""A model as workers run its blocks: what they are sent, and the model and the block that they keep loaded meanwhile.

What is done with a block is left to who asks.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgepack.quant.calibration.blocks import BlockwiseModel
from edgepack.quant.calibration.sweep import BatchRunner

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from edgepack.model import Checkpoint
    from edgepack.quant.calibration.blocks import Block


@dataclass(frozen=True)
class BlockContext:
    """What is sent; the rest is made on the worker when it is asked for, and never sent.

    Attributes:
        checkpoint: the model.
        device: a torch device.
        tokens: [sequences, length]: of their shape masks and positions are made.
        batch: sequences at a time.
        one_by_one: whether experts are run one by one, so that each can be watched.
        products: in what type layers multiply: the sender's, whatever the worker's processor has units for.
    """

    checkpoint: Checkpoint
    device: str
    tokens: NDArray[np.int64]
    batch: int
    one_by_one: bool = False
    products: torch.dtype = torch.float32

    @classmethod
    def of(cls, model: BlockwiseModel, tokens: torch.Tensor, batch: int, *, one_by_one: bool = False) -> BlockContext:
        """Of a model that is here, which workers are to run as it is run here."""
        return cls(model.checkpoint, str(model.device), tokens.numpy(), batch, one_by_one, model.products)

    def __getstate__(self) -> dict[str, Any]:
        """Without what was made."""
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}

    @cached_property
    def model(self) -> BlockwiseModel:
        """The model by blocks."""
        model = BlockwiseModel(self.checkpoint, self.device, products=self.products)
        if self.one_by_one:
            model.run_experts_one_by_one()
        return model

    @cached_property
    def runner(self) -> BatchRunner:
        """Gives masks and positions of a batch."""
        return BatchRunner(self.model, torch.from_numpy(self.tokens), self.batch)

    def block(self, index: int, changed: Mapping[str, NDArray[np.float32]] | None = None) -> Block:
        """Block `index`, loaded; it stays so until another, or the same with other weights, is asked for.

        Args:
            index: of the block.
            changed: checkpoint name → what stands in the place of its own weight.
        """
        self._masks()
        held, wanted = self.__dict__.get("_held"), (index, sorted(changed or ()))
        if held is None or held[0] != wanted:
            self.drop()
            stack = ExitStack()
            block = stack.enter_context(self.model.block(index))
            paths = {name: path for path, name in block.names.items()}
            for name in wanted[1]:
                assert changed is not None
                block.module.get_parameter(paths[name]).copy_(torch.from_numpy(np.array(changed[name])))
            held = self.__dict__["_held"] = (wanted, stack, block)
        return held[2]

    def drop(self) -> None:
        """Let the block go."""
        held = self.__dict__.pop("_held", None)
        if held is not None:
            held[1].close()

    def _masks(self) -> None:
        """Made before a block is loaded: the model is run for them with none."""
        if "_masked" not in self.__dict__:
            self.__dict__["_masked"] = True
            for size in {min(self.batch, len(self.tokens)), len(self.tokens) % self.batch or self.batch}:
                self.runner.calls(size)


def stage_bytes(model: BlockwiseModel) -> int:
    """Memory of work on one block: its weights, and H of what enters them, in float64 and once more in float32."""
    specs = model.source.specs
    names = [name for name in model.tensor_names(0) if name in specs]
    weights = 4 * sum(specs[name].rows * specs[name].columns for name in names)
    moments = 12 * sum({name: specs[name].columns ** 2 for name in names if len(specs[name].shape) == 2}.values())
    return weights + moments
