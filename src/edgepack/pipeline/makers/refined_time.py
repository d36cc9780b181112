"""How long a refinement will take here, from a block of this model run and a sample of its rows rounded.

A minute's guess, for a plan that does no work; what is done is `makers.refined_run`'s.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgepack.gguf.types import GGMLType
from edgepack.pipeline.makers.opened import opened_checkpoint
from edgepack.pipeline.makers.refined_run import SEQUENCES
from edgepack.pipeline.makers.tuned import tuning_settings
from edgepack.pipeline.tuning.sampled import DEFAULT_CTX
from edgepack.pipeline.tuning.tune import MOST_HELD_OUT
from edgepack.processors import default_threads
from edgepack.quant.calibration.blocks import BlockwiseModel
from edgepack.quant.calibration.sweep import calibrated_model
from edgepack.quantities import format_duration

if TYPE_CHECKING:
    from edgepack.model import Checkpoint
    from edgepack.pipeline.request import ExportRequest
    from edgepack.quant.calibration.blocks import Block

_LENGTH = 512
_ROWS = 64  # rounded
# Of a forward pass: all sequences forward with their second moments, every other one forward and backward, the logits
# of all with gradients. SmolLM2 135M, 64 × 512 tokens on two quiet cores: 135 s against 40 s of blocks run forward.
_CURVATURE_PASSES = 3.4
_SAMPLED_SHARE = 1.4  # of all rows: 64 rows of each matrix in thirteen types
_SMOOTHING_SHARE = 0.7  # of the time of one rounding of all weights: SmolLM2 135M, 110 of 160 core-seconds
# Of forward passes over a tuning's sequence. A step asks the original, runs and goes back through the file's model, and
# moves its weights; a look at a held-out sequence makes the weights of the bytes and runs.
_STEP_PASSES, _LOOK_PASSES = 6.0, 1.5


@dataclass(frozen=True)
class ExpectedTime:
    """Seconds, as measured rates say.

    Attributes:
        curvature: of measuring.
        rounding: of predicting, and of one rounding of all weights.
        smoothing: of what comes in front; 0 for nothing.
        tuning: of what comes afterwards; 0 for nothing.
    """

    curvature: float
    rounding: float
    smoothing: float = 0.0
    tuning: float = 0.0

    def __str__(self) -> str:
        """One line for people."""
        parts = f"curvature {format_duration(self.curvature)}, rounding {format_duration(self.rounding)}"
        front = f"smoothing {format_duration(self.smoothing)}, " if self.smoothing else ""
        after = f", tuning {format_duration(self.tuning)}" if self.tuning else ""
        total = format_duration(self.seconds)
        return f"refining takes about {total} on this machine: {front}{parts}{after}"

    @property
    def once(self) -> float:
        """One rounding of all weights, without what predicts it."""
        return self.rounding / (1 + _SAMPLED_SHARE)

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.smoothing + self.curvature + self.rounding + self.tuning


def expected(request: ExportRequest) -> ExpectedTime:
    """Run and round a sample of a request's model.

    Raises:
        EdgepackError: as `BlockwiseModel`.
    """
    checkpoint = opened_checkpoint(request)
    model = calibrated_model(checkpoint, request.device)
    longest = int(checkpoint.config.get("max_position_embeddings") or _LENGTH)
    length = min(request.length or _LENGTH, longest)
    with model.block(0) as block:
        forward = _forward_seconds(model, block, length)
        rounding = _seconds_per_weight(block)
    blocks = model.block_count
    every = [prod(spec.shape) for spec in checkpoint.tensors.specs.values()]
    inside = max(1, sum(prod(checkpoint.tensors.specs[name].shape) for name in model.tensor_names(0)
                        if name in checkpoint.tensors.specs))  # fmt: skip
    alike = sum(every) / inside  # blocks that would have as many weights as the model, its tables included
    through = forward * max(blocks, alike)  # one sequence through the model
    curvature = (request.sequences or SEQUENCES) * through * _CURVATURE_PASSES
    threads = request.threads or default_threads()
    once = rounding * sum(every) / threads
    smoothing = once * _SMOOTHING_SHARE if request.smooth else 0.0
    tuning = 0.0
    if request.tune:
        exact = block_seconds(checkpoint, request.device, length)
        tuning = _tuning_seconds(request, exact * max(blocks, alike) / length)
    return ExpectedTime(curvature, once * (1 + _SAMPLED_SHARE), smoothing, tuning)


def _tuning_seconds(request: ExportRequest, a_token: float) -> float:
    """The minutes that were given, or what so many steps take."""
    settings = tuning_settings(request)
    if settings.minutes is not None:
        return settings.minutes * 60
    assert settings.steps is not None
    looks = (settings.judgements + 1) * MOST_HELD_OUT * _LOOK_PASSES
    return DEFAULT_CTX * a_token * (settings.steps * _STEP_PASSES + looks)


def block_seconds(checkpoint: Checkpoint, device: str, length: int) -> float:
    """Of one sequence of `length` tokens through the first block, in float32 as models are scored and tuned."""
    model = BlockwiseModel(checkpoint, device)
    with model.block(0) as block:
        return _forward_seconds(model, block, length)


def _forward_seconds(model: BlockwiseModel, block: Block, length: int) -> float:
    """Of one sequence through one block; the better of two."""
    tokens = torch.zeros((1, length), dtype=torch.int64)
    call, hidden = model.calls(tokens)[0], torch.randn(1, length, _width(model))
    found = []
    for _ in range(2):
        started = time.perf_counter()
        with torch.no_grad():
            block.run(hidden.to(model.device), call)
        found.append(time.perf_counter() - started)
    return min(found)


def _width(model: BlockwiseModel) -> int:
    return int(model.model.get_input_embeddings().weight.shape[1])


def _seconds_per_weight(block: Block) -> float:
    """Of rounding rows of the block's largest matrix, on one thread."""
    from edgepack.quant.feedback import feedback_factor
    from edgepack.quant.refine.rounding import refine_matrix

    weights = [block.weight(name) for name in block.linears]
    fitting = [weight for weight in weights if weight.shape[1] % 32 == 0]
    if not fitting:
        return 0.0
    rows = max(fitting, key=lambda weight: weight.numel())[:_ROWS].contiguous().float().cpu()
    kind = GGMLType.Q4_K if rows.shape[1] % 256 == 0 else GGMLType.Q5_0
    inputs = torch.eye(rows.shape[1]) + 0.1
    factor, costs = feedback_factor(inputs), torch.from_numpy(np.ones(len(rows), np.float32))
    started = time.perf_counter()
    refine_matrix(rows, factor, kind, inputs=inputs, row_costs=costs, threads=1)
    return float((time.perf_counter() - started) / rows.numel())
