#!/usr/bin/env python3
"""What calibration in bfloat16 gains over float32 on this processor, and how far its results lie apart.

    python tools/bench_products.py MODEL [MODEL …] --text TEXT [--sequences 16] [--length 512] [--threads 1]

For each model: running its blocks, collecting E[x²], collecting H too, and curvature (forward, head, backward), each
in both types in the same run; processor seconds, their ratio, and ‖bfloat16 - float32‖ / ‖float32‖ of what was
collected, the mean over matrices. Curvature's is left out: labels are drawn from probabilities that lie apart, so that
others come. The models are not scored here: `tools/bench_passes.py` does that.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgepack.export.checkpoint import open_checkpoint
from edgepack.quant.calibration.blocks import BlockwiseModel
from edgepack.quant.calibration.collect import collect
from edgepack.quant.calibration.curvature import measure
from edgepack.quant.calibration.products import TOLD, TYPES
from edgepack.quant.calibration.sweep import sweep
from edgepack.quant.calibration.text import text_sequences

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from edgepack.model import Checkpoint

Arrays = dict[str, "NDArray[np.float32]"]


def run_blocks(checkpoint: Checkpoint, tokens: NDArray[np.int64], products_in: torch.dtype) -> Arrays:
    """What leaves the last block."""
    model = BlockwiseModel(checkpoint, products=products_in)
    last = sweep(model, torch.from_numpy(tokens), lambda _visit: None)
    return {"last": last.numpy()}


def collected(checkpoint: Checkpoint, tokens: NDArray[np.int64], *, hessian: bool) -> Arrays:
    """E[x²] of every matrix, or H."""
    found = collect(checkpoint, tokens, with_hessian=hessian).statistics
    return {name: each.mean_square if each.hessian is None else each.hessian for name, each in found.items()}


def curvature(checkpoint: Checkpoint, tokens: NDArray[np.int64]) -> Arrays:
    """Curvature of every matrix; nothing that could be compared."""
    with tempfile.TemporaryDirectory() as folder:
        for _part in measure(checkpoint, tokens, Path(folder)):
            pass
    return {}


def apart(found: Mapping[str, Arrays]) -> str:
    """Mean over matrices of the difference's norm by the norm."""
    exact, own = found["float32"], found["bfloat16"]
    ratios = [float(np.linalg.norm(own[name] - exact[name]) / np.linalg.norm(exact[name])) for name in exact]
    return f"{np.mean(ratios):.4f}" if ratios else ""


def row(name: str, work: Callable[[str], Arrays]) -> list[str]:
    """Both types, one after the other."""
    seconds: dict[str, float] = {}
    found: dict[str, Arrays] = {}
    for kind in TYPES:
        os.environ[TOLD] = kind
        started = time.process_time()
        found[kind] = work(kind)
        seconds[kind] = time.process_time() - started
    gain = seconds["float32"] / seconds["bfloat16"]
    return [name, f"{seconds['float32']:.1f}", f"{seconds['bfloat16']:.1f}", f"{gain:.2f}", apart(found)]


def rows(model: Path, options: argparse.Namespace) -> Iterator[list[str]]:
    """All rows of a model."""
    checkpoint = open_checkpoint(model)
    text = options.text.read_text(encoding="utf-8")
    tokens = text_sequences(checkpoint, text, length=options.length, sequences=options.sequences)
    ways: dict[str, Callable[[str], Arrays]] = {
        "blocks alone": lambda kind: run_blocks(checkpoint, tokens, TYPES[kind]),
        "with E[x²]": lambda _kind: collected(checkpoint, tokens, hessian=False),
        "with H": lambda _kind: collected(checkpoint, tokens, hessian=True),
        "curvature": lambda _kind: curvature(checkpoint, tokens),
    }
    for name, work in ways.items():
        yield row(f"{model.parent.name if model.name == 'model' else model.name}: {name}", work)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("| model and work | float32, core-seconds | bfloat16 | times as fast | apart |")
    print("|---|---|---|---|---|")
    for model in options.models:
        for cells in rows(model, options):
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    from figure_file import run_with_figure

    run_with_figure(main)
