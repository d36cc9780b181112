"""How much each block is pruned: less where the scores of a few weights stand far above the rest.

Source: OWL, Yin et al. (arXiv 2310.05175).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from edgepack.quant.calibration.sweep import calibrated_model, sweep

if TYPE_CHECKING:
    from edgepack.model import Checkpoint
    from edgepack.quant.calibration.sweep import BlockVisit
    from edgepack.quant.passes.run import PassRun

OUTLIER_FACTOR = 5.0  # M of the paper: an outlier's score is above M times its matrix's mean
LARGEST_DEVIATION = 0.08  # λ of the paper: how far a block's sparsity may lie from the target


def outlier_share(scores: torch.Tensor, factor: float = OUTLIER_FACTOR) -> float:
    """The share of scores [out, in] above `factor` times their mean."""
    return float((scores > factor * scores.mean()).double().mean())


def spread_sparsity(shares: list[float], target: float, deviation: float = LARGEST_DEVIATION) -> list[float]:
    """A sparsity for each block, with mean `target`, lower where the outlier share is higher.

    Args:
        shares: outlier share of each block.
        target: the mean sparsity, 0 to 1.
        deviation: how wide the sparsities lie: the highest and the lowest are 2 · deviation apart.

    Returns:
        One sparsity a block, within 0 … 0.99.
    """
    low, high = min(shares), max(shares)
    if high == low:
        return [target] * len(shares)
    density = [2 * deviation * (share - low) / (high - low) for share in shares]
    mean = sum(density) / len(density)
    return [min(max(target + mean - extra, 0.0), 0.99) for extra in density]


def allocate_by_outliers(checkpoint: Checkpoint, target: float, run: PassRun) -> list[float]:
    """Sparsity of each block by the outliers of Wanda's scores over all its linears; raises as `sweep`."""
    shares: list[float] = []

    def visitor(visit: BlockVisit) -> torch.Tensor:
        statistics, outputs = visit.observe(list(visit.block.linears), False)
        outliers, weights = 0.0, 0
        for name, found in statistics.items():
            weight = visit.block.weight(name)
            scores = weight.abs() * torch.from_numpy(found.mean_square).to(weight.device).sqrt()
            outliers += outlier_share(scores) * weight.numel()
            weights += weight.numel()
        shares.append(100 * outliers / weights)
        return outputs

    tokens = run.required_tokens("pass 'prune' with allocation 'owl'")
    model = calibrated_model(checkpoint, run.device)
    sweep(model, tokens, visitor, batch=run.batch, progress=run.progress, label="outliers")
    return spread_sparsity(shares, target)
