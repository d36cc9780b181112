#!/usr/bin/env python3
"""Holds the memory that a training is planned with against what it takes: one process for each way of training.

    python tools/bench_learning_memory.py tests/data/books-llama-6m [--length 256] [--figure learning-memory]

Every row trains a few steps of `quant/learning/loop.py`, in the way that the row says, with a checkpoint. Predicted is
what the plan says of the peak, measured the highest resident size of the process from its begin to its end (VmHWM), the
teacher's turn before the training included. The last three columns are both without what lay there before the training:
the process, its libraries and the weights.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from part_cost import peak_memory

if TYPE_CHECKING:
    from torch import nn

    from edgepack.model import Checkpoint

ALL, TERNARY, ADAPTER = "all weights, from answers", "ternary, from answers", "adapter, from text"
STEPS, RANK = 2, 16


@dataclass(frozen=True)
class Way:
    """One way of training.

    Attributes:
        learns: what learns, and from what.
        batch: examples at once.
        recomputes: whether activations are computed again.
    """

    learns: str
    batch: int
    recomputes: bool


WAYS = (
    *(Way(ALL, batch, recomputes) for batch in (8, 1) for recomputes in (False, True)),
    Way(TERNARY, 8, False), Way(ADAPTER, 8, False),
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """Bytes: before the training, the plan's peak, and the process'."""

    before: int
    predicted: int
    measured: int

    @property
    def cells(self) -> list[str]:
        """Of the table."""
        whole, own = (self.predicted, self.measured), (self.predicted - self.before, self.measured - self.before)
        return [cell for p, m in (whole, own) for cell in (f"{p / 1e6:,.0f}", f"{m / 1e6:,.0f}", f"{p / m - 1:+.1%}")]


def train(path: Path, way: Way, length: int, folder: Path) -> Found:
    """Train so; called in a process of its own."""
    import numpy as np
    import torch

    from edgepack.export.checkpoint import open_checkpoint
    from edgepack.quant.learning import loop
    from edgepack.quant.learning.memory import Plan, footprint, resident
    from edgepack.quant.learning.settings import LearningSettings
    from edgepack.quant.learning.text_blocks import TokenBlocks

    torch.set_num_threads(1)
    loop.check_packages()
    checkpoint = open_checkpoint(path)
    tokens = np.random.default_rng(0).integers(3, 1000, (way.batch * STEPS, length))
    model, examples, objective = student(checkpoint, way.learns, TokenBlocks(tokens), folder)
    before = resident(torch.device("cpu"))

    def planned(*given: Any) -> Plan:
        peak = footprint(*given[:3], length).peak(way.batch, recomputes=way.recomputes)
        return Plan(way.batch, 1, way.recomputes, peak)

    loop.plan_memory = planned  # which way is gone is the table's to say, not a limit's
    settings = LearningSettings(STEPS, batch=way.batch, length=length, keep_every=2)
    plan = loop.learn(model, examples, objective, settings, folder / "run").plan
    assert plan is not None
    return Found(before, plan.peak, peak_memory())


def student(checkpoint: Checkpoint, learns: str, blocks: Any, folder: Path) -> tuple[nn.Module, Any, Any]:
    """(model, examples, what a batch costs), as the passes and the commands make them."""
    from edgepack.quant.learning.answers import Asked, answer_examples
    from edgepack.quant.learning.lora import LoraSettings, with_lora
    from edgepack.quant.learning.models import trainable_model
    from edgepack.quant.learning.objectives import Distillation, NextToken
    from edgepack.quant.passes.ternary.training import TernarySettings, make_ternary

    if learns == ADAPTER:
        return with_lora(trainable_model(checkpoint), LoraSettings(RANK)), blocks, NextToken()
    layer = checkpoint.config["num_hidden_layers"] - 1
    asked = Asked(64, relations=layer if learns == TERNARY else None)
    examples = answer_examples(trainable_model(checkpoint).requires_grad_(False), blocks, asked, folder / "answers")
    model = trainable_model(checkpoint)
    if learns == TERNARY:
        make_ternary(model, TernarySettings())
    return model, examples, Distillation(asked, relations=0.1 if learns == TERNARY else 0.0)


def main() -> None:
    """Parse options, train, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--length", type=int, default=256, help="tokens of an example")
    parser.add_argument("--first", type=int, default=0, help="the row to begin with, from 0")
    options = parser.parse_args()
    both = ["predicted MB", "measured MB", "off by"]
    columns = ["what learns", "batch", "activations", *both, "training alone: predicted MB", *both[1:]]
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    spawned = multiprocessing.get_context("spawn")
    for way in WAYS[options.first :]:
        with tempfile.TemporaryDirectory(prefix="learning-memory-") as folder, ProcessPoolExecutor(1, spawned) as own:
            found = own.submit(train, options.model, way, options.length, Path(folder)).result()
        kept = "computed twice" if way.recomputes else "kept"
        print(f"| {way.learns} | {way.batch} | {kept} | " + " | ".join(found.cells) + " |", flush=True)


if __name__ == "__main__":
    from figure_file import run_with_figure

    run_with_figure(main)
