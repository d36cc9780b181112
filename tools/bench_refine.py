#!/usr/bin/env python3
"""What refinement gives and costs: ingredients one by one on some matrices of a model, and nanoseconds a weight.

    .venv/bin/python tools/bench_refine.py MODEL --curvature FOLDER [--layers 3,15] [--rows 64] [--text TEXT]

FOLDER is a store of curvatures (`edgepack.quant.calibration.curvature_store`). Figures are the loss ½ Σ G_rr e H eᵀ
over that of edgepack's encoder with H's diagonal as importance. With --text the same losses under the H of another text
follow, measured by transformers: what an ingredient gives on text that the curvature never saw. Time is the process's
own, of one thread.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from edgepack.export.checkpoint import open_checkpoint
from edgepack.gguf.types import GGMLType
from edgepack.quant.calibration.curvature_store import CurvatureStore
from edgepack.quant.codecs.ggml.codec import quantize_rows
from edgepack.quant.codecs.ggml.grid import GRID_TYPES
from edgepack.quant.feedback import feedback_factor
from edgepack.quant.passes.gptq import gptq_rows
from edgepack.quant.refine.blocks import FORMS, read_scales, write_rows
from edgepack.quant.refine.rounding import row_losses
from edgepack.quant.refine.search import Geometry, heavy_first, search_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

NARROW = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL")
WIDE = ("Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "IQ4_XS")
CHUNK = 384  # tokens of the other text that are read together


def ingredients(
    weight: torch.Tensor, kind: GGMLType, inputs: torch.Tensor
) -> Iterator[tuple[str, Callable[[], NDArray[np.uint8]]]]:
    """Names of roundings, each with all before it, and what makes their rows."""
    squares, form = inputs.diagonal().numpy(), FORMS[kind]
    start = read_scales(kind, quantize_rows(kind, weight.numpy(), squares))

    def search(geometry: Geometry, sweeps: int) -> NDArray[np.uint8]:
        return write_rows(kind, *search_rows(weight.numpy(), kind, start, geometry, 1, sweeps))

    yield "encoder", lambda: quantize_rows(kind, weight.numpy(), squares)
    if kind in GRID_TYPES:
        factor = feedback_factor(inputs)
        yield "feedback", lambda: gptq_rows(weight, factor, kind, squares)[0]
    order = heavy_first(squares, form.group)
    as_they_are = Geometry.of(inputs, 0.01, form.group, shrunk=False)
    heavy = Geometry.of(inputs, 0.01, form.group, order, shrunk=False)
    shrunk = Geometry.of(inputs, 0.01, form.group, order)
    yield "scales searched in it", lambda: search(as_they_are, 0)
    yield "heavy groups first", lambda: search(heavy, 0)
    for sweeps in (1, 2, 5):
        yield f"descent, {sweeps} sweeps", lambda sweeps=sweeps: search(heavy, sweeps)  # type: ignore[misc]
    yield "H shrunk", lambda: search(shrunk, 5)


def inputs_under(model: Path, text: Path, modules: list[str]) -> dict[str, torch.Tensor]:
    """H of what modules read while transformers runs `text`, by module name."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    tokens = AutoTokenizer.from_pretrained(model)(text.read_text(), return_tensors="pt").input_ids[0]
    sums: dict[str, torch.Tensor] = {}

    def observe(name: str, read: torch.Tensor) -> None:
        vectors = read.reshape(-1, read.shape[-1])
        sums[name] = sums.get(name, torch.zeros(())) + vectors.T @ vectors / len(tokens)

    for name in modules:
        loaded.get_submodule(name).register_forward_pre_hook(lambda _, read, name=name: observe(name, read[0]))
    with torch.no_grad():
        for chunk in tokens.split(CHUNK):
            loaded.base_model(chunk[None])
    return sums


def main() -> None:
    """Print the table of every matrix and type."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--curvature", type=Path, required=True)
    parser.add_argument("--layers", default="15")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--text", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    store, tensors = CurvatureStore(arguments.curvature), open_checkpoint(arguments.model).tensors
    cases = [
        (f"model.layers.{layer}.mlp.{part}", GGMLType[kind])
        for layer in arguments.layers.split(",")
        for part, kinds in (("gate_proj", NARROW), ("down_proj", WIDE))
        for kind in kinds
    ]
    others = (
        {} if arguments.text is None else inputs_under(arguments.model, arguments.text, [name for name, _ in cases])
    )
    for name, kind in cases:
        weight = torch.from_numpy(tensors.read_rows(f"{name}.weight", 0, arguments.rows))
        if weight.shape[1] % kind.block_size:
            continue
        inputs, costs = (
            store.inputs(f"{name}.weight"),
            store.outputs(f"{name}.weight")[: arguments.rows].double().numpy(),
        )
        print(f"{name} {tuple(weight.shape)} {kind.name}", flush=True)
        first: list[float] = []
        for label, rounded in ingredients(weight, kind, inputs):
            started = time.process_time()
            rows = rounded()
            spent = (time.process_time() - started) / weight.numel() * 1e9
            seen = [inputs, *([others[name]] if others else [])]
            losses = [float(row_losses(weight, kind, rows, some) @ costs) for some in seen]
            first = first or losses
            shares = "  ".join(f"{loss / whole:.4f}" for loss, whole in zip(losses, first, strict=True))
            print(f"  {label:24} {shares}  {spent:6.0f} ns a weight", flush=True)


if __name__ == "__main__":
    main()
