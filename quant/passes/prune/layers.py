"""Removes whole transformer blocks: those that change their input least, measured over text.

Source: block influence, 1 - cos(input, output), of ShortGPT, Men et al. (arXiv 2403.03853).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgepack.errors import UsageError
from edgepack.model import TensorSpec
from edgepack.quant.calibration.blocks import BlockwiseModel
from edgepack.quant.calibration.sweep import calibrated_model, sweep
from edgepack.quant.passes.run import PassOutcome

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from edgepack.model import Checkpoint, TensorSource
    from edgepack.quant.calibration.sweep import BlockVisit
    from edgepack.quant.passes.run import Figure, PassRun

_COUNT_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


@dataclass(frozen=True)
class RenamedTensors:
    """A source under other names; tensors without a new name are left out.

    Attributes:
        base: the source below.
        names: new name → name in `base`.
    """

    base: TensorSource
    names: Mapping[str, str]

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The specs of `base` under the new names."""
        base = self.base.specs
        return {new: TensorSpec(new, base[old].shape, base[old].dtype) for new, old in self.names.items()}

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """As `TensorSource.read_rows`."""
        return self.base.read_rows(self.names[name], start, stop)


def block_influence(checkpoint: Checkpoint, run: PassRun) -> list[float]:
    """1 - cos(input, output) of each block, mean over all tokens; 0 for a block that changes no direction."""
    influence: list[float] = []

    def visitor(visit: BlockVisit) -> torch.Tensor:
        outputs = visit.outputs()
        cosine = torch.nn.functional.cosine_similarity(visit.inputs, outputs, dim=-1)
        influence.append(float(1 - cosine.double().mean()))
        return outputs

    model = calibrated_model(checkpoint, run.device)
    tokens = run.required_tokens("pass 'prune' of whole layers")
    sweep(model, tokens, visitor, batch=run.batch, progress=run.progress, label="influence")
    return influence


def drop_layers(checkpoint: Checkpoint, count: int, run: PassRun) -> PassOutcome:
    """Remove the `count` blocks with the least influence; does not modify `checkpoint`.

    Raises:
        UsageError: the model would have no block left.
    """
    influence = block_influence(checkpoint, run)
    if not 0 < count < len(influence):
        raise UsageError(f"prune: layers: expected 1 to {len(influence) - 1} for {len(influence)} blocks, got {count}")
    dropped = sorted(int(index) for index in np.argsort(influence, kind="stable")[:count])
    kept = [index for index in range(len(influence)) if index not in dropped]
    figures: dict[str, Figure] = {
        "dropped": ",".join(map(str, dropped)),
        "dropped_influence": max(influence[i] for i in dropped),
    }
    return PassOutcome(keep_layers(checkpoint, kept), figures)


def keep_layers(checkpoint: Checkpoint, kept: Sequence[int]) -> Checkpoint:
    """The model with only the blocks `kept`, renumbered in that order; does not modify `checkpoint`."""
    prefix = _block_prefix(checkpoint)
    numbers = {old: new for new, old in enumerate(kept)}
    names: dict[str, str] = {}
    for name in checkpoint.tensors.specs:
        match = re.match(rf"{re.escape(prefix)}\.(\d+)(\..*)", name)
        if match is None:
            names[name] = name
        elif int(match[1]) in numbers:
            names[f"{prefix}.{numbers[int(match[1])]}{match[2]}"] = name
    config = _shortened(checkpoint.config, kept)
    return replace(checkpoint, config=config, tensors=RenamedTensors(checkpoint.tensors, names))


def _block_prefix(checkpoint: Checkpoint) -> str:
    """What stands before the block's number in the names of the checkpoint, such as `model.layers`."""
    name = BlockwiseModel(checkpoint).tensor_names(0)[0]
    return re.split(r"\.0\.", name, maxsplit=1)[0]


def _shortened(config: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """The configuration with the new count, and with lists that have an entry a block cut alike."""
    before = next(int(config[key]) for key in _COUNT_KEYS if key in config)
    changed = dict(config)
    for key, value in config.items():
        if key in _COUNT_KEYS:
            changed[key] = len(kept)
        elif isinstance(value, list) and len(value) == before and key.startswith("layer"):
            changed[key] = [value[index] for index in kept]
    return changed
