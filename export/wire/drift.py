"""Drift correction: each block is fitted to what it receives from the blocks already rounded, not to what it once did.

With X what a matrix received in the original and Y what it receives now, the weights that come closest to X·Wᵀ are
W·XᵀY·(YᵀY)⁻¹, and errors cost by YᵀY. Two forward passes over the calibration text go along with the rounding, one
of the original and one of the rounded model. How weights are rounded is left to `wire`.

Source: Li et al., GPTAQ (arXiv 2504.02692), the asymmetric calibration of GPTQ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from edgepack.errors import NumericError
from edgepack.quant.calibration.products import summed_products
from edgepack.quant.calibration.sweep import BatchRunner, calibrated_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np
    from numpy.typing import NDArray

    from edgepack.export.row_origin import RowOrigin as Origin
    from edgepack.model import Checkpoint
    from edgepack.quant.calibration.blocks import Block

_DAMPING = 0.01  # of the mean square: towards no correction where the text says little


@dataclass(frozen=True)
class Drifted:
    """What a matrix receives now.

    Attributes:
        inputs: YᵀY a token, float32 [in, in].
        mixing: what its weights [out, in] are multiplied with from the right, float32 [in, in].
    """

    inputs: torch.Tensor
    mixing: torch.Tensor


class _Moments:
    """Sums of YᵀY and XᵀY over batches, in float64 on the CPU."""

    def __init__(self) -> None:
        self.own: torch.Tensor | float = 0.0
        self.cross: torch.Tensor | float = 0.0
        self.count = 0

    def add(self, original: torch.Tensor, now: torch.Tensor) -> None:
        """Add inputs [..., in] of the same tokens."""
        x, y = (part.reshape(-1, part.shape[-1]) for part in (original, now))
        self.own = self.own + summed_products(y, y).double().cpu()
        self.cross = self.cross + summed_products(x, y).double().cpu()
        self.count += len(x)

    def result(self, name: str) -> Drifted:
        """Once: the sums are used up."""
        if not isinstance(self.own, torch.Tensor) or not torch.isfinite(self.own).all():
            raise NumericError(f"layer '{name}': NaN or infinity in its inputs after rounding the layers before it")
        assert isinstance(self.cross, torch.Tensor)
        inputs, damping = (self.own / self.count).float(), _DAMPING * self.own.diagonal().mean().clamp_min(1e-30)
        for sums in (self.own, self.cross):  # in place: of wide matrices either takes gigabytes
            sums.diagonal().add_(damping)
        return Drifted(inputs, torch.linalg.solve(self.own, self.cross.T).T.float())


class DriftRun:
    """The original and the rounded model side by side, block after block.

    Args:
        checkpoint: the original; only read.
        tokens: [sequences, length].
        device: a torch device.
        batch: sequences at a time.
    """

    def __init__(self, checkpoint: Checkpoint, tokens: NDArray[np.int64], device: str = "cpu", batch: int = 4) -> None:
        self._model = calibrated_model(checkpoint, device)
        self._tokens = torch.from_numpy(tokens)
        self._runner = BatchRunner(self._model, self._tokens, batch)
        with self._model.shell():
            self._original = self._runner.map(lambda start, stop: self._model.embed(self._tokens[start:stop]))
        self._now = self._original

    def embed(self, table: NDArray[np.float32]) -> None:
        """Let the rounded model begin with a rounded token embedding [vocabulary, width]."""
        with self._model.shell():
            weight = self._model.model.get_input_embeddings().weight
            weight.data.copy_(torch.from_numpy(table))
            self._now = self._runner.map(lambda start, stop: self._model.embed(self._tokens[start:stop]))

    def look(self, index: int) -> dict[str, Drifted]:
        """What the matrices of a block receive now, by checkpoint name; the original moves on to the next block.

        Both runs have the original's weights, so that drift within the block is left out. Matrices that read the same
        tensor share their moments.
        """
        sums: dict[str, _Moments] = {}
        owners: dict[str, str] = {}
        products = self._model.products  # what the matrices see
        with self._model.block(index) as block:

            def both(start: int, stop: int) -> torch.Tensor:
                output, before = self._watched(block, self._original, start, stop)
                _, now = self._watched(block, self._now, start, stop)
                first: dict[int, str] = {}
                for name, inputs in before.items():
                    owners[name] = first.setdefault(id(inputs), name)
                    if owners[name] == name:
                        sums.setdefault(name, _Moments()).add(inputs.to(products), now[name].to(products))
                return output

            self._original = self._runner.map(both)
        found = {name: moments.result(name) for name, moments in sums.items()}
        return {name: found[owner] for name, owner in owners.items()}

    def _watched(
        self, block: Block, hidden: torch.Tensor, start: int, stop: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The block's output for some sequences, and the inputs of its linears."""
        seen: dict[str, torch.Tensor] = {}

        def keep(name: str) -> Callable[[Any, tuple[torch.Tensor, ...]], None]:
            return lambda _module, arguments: seen.update({name: arguments[0]})

        handles = [module.register_forward_pre_hook(keep(name)) for name, module in block.linears.items()]
        try:
            return self._run(block, hidden, start, stop), seen
        finally:
            for handle in handles:
                handle.remove()

    def _run(self, block: Block, hidden: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        part = hidden[start:stop].to(self._model.device)
        return block.run(part, self._runner.calls(stop - start)[block.index])

    def advance(self, index: int, rounded: Iterable[tuple[Origin, NDArray[np.float32]]]) -> None:
        """Take the rounded model through a block.

        Args:
            index: of the block.
            rounded: where the rows of a GGUF matrix come from, and those rows, unfolded.
        """
        with self._model.block(index) as block:
            for origin, rows in rounded:
                for part, name in enumerate(origin.names):
                    mine = origin.parts == part
                    block.weight(name)[torch.from_numpy(origin.rows[mine])] = torch.from_numpy(rows[mine]).to(
                        self._model.device
                    )
            self._now = self._runner.map(lambda start, stop: self._run(block, self._now, start, stop))
