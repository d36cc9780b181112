"""Spectra of every linear layer's weights and of every block's output, one block at a time.

Mathematics is in `spectrum`; printing and pages are left to the command and to `report`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.quant.calibration.blocks import BlockwiseModel
from edgepack.quant.calibration.sweep import sweep
from edgepack.quant.passes.lowrank.spectrum import Moments, activation_spectra, compression_at, weight_spectrum

if TYPE_CHECKING:
    import torch

    from edgepack.model import Checkpoint
    from edgepack.quant.calibration.blocks import Block
    from edgepack.quant.calibration.sweep import BlockVisit
    from edgepack.quant.passes.lowrank.spectrum import Spectrum
    from edgepack.quant.passes.run import PassRun


@dataclass(frozen=True)
class WeightAnalysis:
    """One linear layer.

    Attributes:
        name: checkpoint name of its weight.
        shape: (out, in).
        spectra: `raw` and `centred`.
        sensitivity: relative output error E‖ΔW·x‖² / E‖W·x‖² when the file's type rounds it; None without text.
    """

    name: str
    shape: tuple[int, int]
    spectra: dict[str, Spectrum]
    sensitivity: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values, with the compression that each k would give."""
        ks = {**self.spectra["centred"].k_for, "k=9": 9, "k=22": 22}
        return {
            "name": self.name,
            "shape": list(self.shape),
            "spectra": {name: spectrum.as_json() for name, spectrum in self.spectra.items()},
            "compression": {label: compression_at(*self.shape, k) for label, k in ks.items()},
            "sensitivity": self.sensitivity,
        }


@dataclass(frozen=True)
class ActivationAnalysis:
    """What leaves one block: spectra by the way they are taken."""

    block: int
    spectra: dict[str, Spectrum]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"block": self.block, "spectra": {name: value.as_json() for name, value in self.spectra.items()}}


@dataclass(frozen=True)
class ModelAnalysis:
    """All layers and blocks of a model."""

    weights: tuple[WeightAnalysis, ...]
    activations: tuple[ActivationAnalysis, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "weights": [layer.as_json() for layer in self.weights],
            "activations": [block.as_json() for block in self.activations],
        }


def analyse(checkpoint: Checkpoint, run: PassRun) -> ModelAnalysis:
    """Spectra of all weights inside the blocks, and of activations where the run has tokens. Only reads.

    Raises:
        NumericError: NaN or infinity; the text names the layer.
    """
    model = BlockwiseModel(checkpoint, run.device)
    weights: list[WeightAnalysis] = []
    activations: list[ActivationAnalysis] = []
    if run.tokens is None:
        with run.progress("analysing", model.block_count, " blocks") as advance:
            for index in range(model.block_count):
                with model.block(index) as block:
                    weights += _weights(block, {})
                advance(1)
        return ModelAnalysis(tuple(weights), ())

    def visitor(visit: BlockVisit) -> torch.Tensor:
        statistics, outputs = visit.observe(list(visit.block.linears), True)
        weights.extend(_weights(visit.block, {name: found.hessian for name, found in statistics.items()}))
        activations.append(ActivationAnalysis(visit.block.index, output_spectra(outputs)))
        return outputs

    tokens = run.required_tokens("analyze")
    sweep(model, tokens, visitor, batch=run.batch, progress=run.progress, label="analysing")
    return ModelAnalysis(tuple(weights), tuple(activations))


def _weights(block: Block, hessians: dict[str, Any]) -> list[WeightAnalysis]:
    found = []
    for name in block.linears:
        weight = block.weight(name).cpu().numpy()
        spectra = {"raw": weight_spectrum(weight, centred=False), "centred": weight_spectrum(weight, centred=True)}
        hessian = hessians.get(name)
        sensitivity = None if hessian is None else rounding_sensitivity(weight, hessian)
        found.append(WeightAnalysis(name, (weight.shape[0], weight.shape[1]), spectra, sensitivity))
    return found


def rounding_sensitivity(weight: Any, hessian: Any) -> float:
    """E‖ΔW·x‖² / E‖W·x‖² when 4-bit integers in groups of 32 (or whole short rows) hold the weight [out, in]."""
    import torch

    from edgepack.quant.passes.awq.rounding import IntegerRounding

    group = 32 if weight.shape[1] % 32 == 0 else weight.shape[1]
    error = IntegerRounding(4, group)(torch.from_numpy(np.ascontiguousarray(weight))).numpy() - weight
    energy = float(((weight @ hessian) * weight).sum())
    return float(((error @ hessian) * error).sum()) / max(energy, 1e-30)


def output_spectra(outputs: torch.Tensor) -> dict[str, Spectrum]:
    """Spectra of activations [sequences, length, width], with and without the first token of each sequence."""
    return activation_spectra(_moments(outputs), _moments(outputs[:, 1:]))


def _moments(activations: torch.Tensor) -> Moments:
    flat = activations.reshape(-1, activations.shape[-1]).double()
    mean, second = flat.mean(0), flat.T @ flat / len(flat)
    return Moments(len(flat), mean.numpy(), second.numpy())
