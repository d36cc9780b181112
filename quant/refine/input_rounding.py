"""How far llama.cpp's rounding of activations moves what each matrix reads: measured on a text, column by column.

ggml rounds the inputs of every matrix in a quantised type to 8 bits, a step a block of 32 (Q8_0 and Q8_1) or 256
columns (Q8_K). What it costs is left to those who have the curvature, the rounding itself to `passes.awq.rounding`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from edgepack.progress import silent
from edgepack.quant.calibration.sweep import calibrated_model, sweep
from edgepack.quant.passes.awq.rounding import rounded_activations
from edgepack.quant.refine.kinds import COARSE_BLOCK, FINE_BLOCK

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from edgepack.model import Checkpoint
    from edgepack.progress import Progress
    from edgepack.quant.calibration.sweep import BlockVisit
BLOCKS = (FINE_BLOCK, COARSE_BLOCK)


@dataclass(frozen=True)
class InputRounding:
    """How what one matrix reads is rounded.

    Attributes:
        mean_square: of its inputs, over all columns.
        errors: block (of `BLOCKS`, where it divides the columns) → mean square of the rounding, float32 [in].
    """

    mean_square: float
    errors: Mapping[int, NDArray[np.float32]]


def measure_input_rounding(
    checkpoint: Checkpoint,
    tokens: NDArray[np.int64],
    *,
    device: str = "cpu",
    batch: int = 4,
    progress: Progress = silent,
) -> dict[str, InputRounding]:
    """The rounding of every matrix' inputs over `tokens` [sequences, length], by the checkpoint's names.

    The head is among them where the model has one; what experts read is not watched.

    Raises:
        EdgepackError: as `BlockwiseModel` and `sweep`.
    """
    model = calibrated_model(checkpoint, device)
    found: dict[str, InputRounding] = {}

    def look(visit: BlockVisit) -> torch.Tensor:
        watch = _Watch()
        handles = [module.register_forward_pre_hook(watch.hook(name)) for name, module in visit.block.linears.items()]
        try:
            outputs = visit.outputs()
        finally:
            for handle in handles:
                handle.remove()
        found.update(watch.results())
        return outputs

    last = sweep(model, torch.from_numpy(tokens), look, batch=batch, progress=progress, label="Rounding of inputs")
    if model.head_name is not None:
        watch = _Watch()
        with model.shell():
            for start in range(0, len(tokens), batch):
                part = torch.from_numpy(tokens[start : start + batch])
                watch.add(model.head_name, model.head_inputs(last[start : start + batch].to(model.device), part))
        found.update(watch.results())
    return found


class _Watch:
    """Sums of squared rounding errors and of squared inputs, by name and block; 0 stands for the inputs."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[int, torch.Tensor]] = {}
        self._counts: dict[str, int] = {}
        self._last: tuple[Any, dict[int, torch.Tensor]] = (None, {})

    def hook(self, name: str) -> Callable[[Any, tuple[Any, ...]], None]:
        """A forward pre-hook of the linear called `name`."""
        return lambda _module, arguments: self.add(name, arguments[0])

    def add(self, name: str, inputs: torch.Tensor) -> None:
        """Add inputs [..., in]; matrices that read one tensor share the work."""
        if self._last[0] is not inputs:
            self._last = (inputs, _squares(inputs.detach().float().reshape(-1, inputs.shape[-1])))
        known = self._sums.setdefault(name, {})
        for block, squares in self._last[1].items():
            known[block] = known[block] + squares if block in known else squares
        self._counts[name] = self._counts.get(name, 0) + inputs.numel() // inputs.shape[-1]

    def results(self) -> dict[str, InputRounding]:
        """The means."""
        return {name: self._result(sums, self._counts[name]) for name, sums in self._sums.items()}

    def _result(self, sums: Mapping[int, torch.Tensor], count: int) -> InputRounding:
        errors = {block: (squares / count).float().numpy() for block, squares in sums.items() if block}
        return InputRounding(float(sums[0].mean()) / count, errors)


def _squares(flat: torch.Tensor) -> dict[int, torch.Tensor]:
    """Sums over tokens [n, in], float64 [in]: of the inputs, and of their rounding in each block that fits."""
    found = {block: rounded_activations(flat, block) - flat for block in BLOCKS if flat.shape[1] % block == 0}
    return {block: each.square().sum(0).double().cpu() for block, each in {0: flat, **found}.items()}
