"""Spectra of every linear layer's weights and of every block's output, one block at a time.

Mathematics is in `spectrum`; printing and pages are left to the command and to `report`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import NumericError
from edgepack.progress import silent
from edgepack.quant.calibration.blocks import BlockwiseModel
from edgepack.quant.calibration.sweep import sweep
from edgepack.quant.passes.lowrank.spectrum import Moments, activation_spectra, compression_at, weight_spectrum
from edgepack.quant.passes.lowrank.summary import summarise

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from edgepack.model import Checkpoint
    from edgepack.progress import Progress
    from edgepack.quant.calibration.blocks import Block
    from edgepack.quant.calibration.sweep import BlockVisit
    from edgepack.quant.passes.lowrank.spectrum import Spectrum
    from edgepack.quant.passes.lowrank.summary import Summary
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

    @property
    def summary(self) -> Summary | None:
        """What all weights together say."""
        return summarise([(layer.shape, layer.spectra["centred"]) for layer in self.weights])

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "weights": [layer.as_json() for layer in self.weights],
            "activations": [block.as_json() for block in self.activations],
            "summary": None if self.summary is None else self.summary.as_json(),
        }


def analyse(checkpoint: Checkpoint, run: PassRun) -> ModelAnalysis:
    """Spectra of all weights inside the blocks, and of activations where the run has tokens. Only reads.

    Raises:
        NumericError: NaN or infinity; the text names the layer.
    """
    if run.tokens is None:
        return ModelAnalysis(tuple(analyse_weights(checkpoint, run.progress)), ())
    model = BlockwiseModel(checkpoint, run.device)
    weights: list[WeightAnalysis] = []
    activations: list[ActivationAnalysis] = []

    def visitor(visit: BlockVisit) -> torch.Tensor:
        statistics, outputs = visit.observe(list(visit.block.linears), True)
        weights.extend(_weights(visit.block, {name: found.hessian for name, found in statistics.items()}))
        activations.append(ActivationAnalysis(visit.block.index, output_spectra(outputs)))
        return outputs

    tokens = run.required_tokens("analyze")
    sweep(model, tokens, visitor, batch=run.batch, progress=run.progress, label="analysing")
    return ModelAnalysis(tuple(weights), tuple(activations))


def analyse_weights(checkpoint: Checkpoint, progress: Progress = silent) -> Iterator[WeightAnalysis]:
    """Spectra of every matrix inside the blocks, of any architecture: nothing but the tensors' shapes is asked.

    Embeddings, heads and vectors are left out; stacks of experts are taken matrix by matrix.
    """
    chosen = [(name, spec) for name, spec in checkpoint.tensors.specs.items() if is_block_matrix(name, spec.shape)]
    with progress("analysing", len(chosen), " matrices") as advance:
        for name, spec in sorted(chosen, key=lambda each: _natural(each[0])):
            out, columns = spec.shape[-2:]
            count = spec.rows // out
            for number in range(count):
                weight = checkpoint.tensors.read_rows(name, number * out, (number + 1) * out)
                label = name if count == 1 else f"{name}[{number}]"
                yield WeightAnalysis(label, (out, columns), _spectra(weight, label))
            advance(1)


def is_block_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a checkpoint's tensor is a matrix of a numbered block with something to factorise."""
    return len(shape) in (2, 3) and min(shape[-2:]) >= _LEAST_SIDE and bool(re.search(r"\.\d+\.", name))


_LEAST_SIDE = 8  # narrower ones are convolutions, gates and tables


def _natural(name: str) -> tuple[tuple[int, str], ...]:
    """Sorts block 2 before block 10."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in name.split("."))


def _spectra(weight: Any, name: str) -> dict[str, Spectrum]:
    if not np.isfinite(weight).all():
        raise NumericError(f"{name}: NaN or infinity among the weights")
    return {"raw": weight_spectrum(weight, centred=False), "centred": weight_spectrum(weight, centred=True)}


def _weights(block: Block, hessians: dict[str, Any]) -> list[WeightAnalysis]:
    found = []
    for name in block.linears:
        weight = block.weight(name).cpu().numpy()
        spectra = _spectra(weight, name)
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
