#!/usr/bin/env python3
"""The floor under every quantised type: what llama.cpp's rounding of activations costs beside that of weights.

    python tools/floor.py MODEL --calibration TEXT --text TEXT [--types Q8_0,Q6_K,Q4_K_M] [--chunks 24] [--pass smooth]
    python tools/floor.py MODEL --calibration TEXT --where Q8_0        which matrices, predicted; scores nothing

Every type is written thrice: with an importance matrix, after `--pass`, and refined after it. Each file is run by
llama.cpp, which rounds weights and activations; its weights, read back and written as float16, are run by llama.cpp
again, which then rounds weights alone. The difference is the activations' share. `--where` predicts it from gradients
instead, matrix by matrix, with the bytes that float16 would take there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.edge.fidelity.scoring import ScoringOptions
from edgepack.export.checkpoint import open_checkpoint
from edgepack.export.mapped_model import map_checkpoint
from edgepack.gguf.types import GGMLType
from edgepack.pipeline.fidelity import run_validation
from edgepack.pipeline.makers.wire_run import read_calibration
from edgepack.quant.calibration.input_samples import InputSampler
from edgepack.quant.refine.activations import activation_block, input_cost
from edgepack.quant.types.choice import Candidate, Overrides, choose_types
from edgepack.quant.types.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    from edgepack.model import Checkpoint
    from edgepack.quant.calibration.block_samples import InputSample

TYPES = "Q8_0,Q6_K,Q5_K_M,Q4_K_M"
SEQUENCES, LENGTH = 64, 512


@dataclass(frozen=True)
class Measured:
    """One file: its bytes, mean KL and top-1 as it runs, and the mean KL of its weights alone."""

    name: str
    bytes: int
    both: float
    top1: float
    weights: float


def export(source: Path, target: str, out: Path, *options: str) -> None:
    """One export in a process of its own."""
    command = [sys.executable, "-m", "edgepack", "export", str(source), "--target", target, "-o", str(out), *options]
    subprocess.run([*command, "--force"], check=True, stdout=subprocess.DEVNULL)


def variants(kind: str, passes: str) -> list[tuple[str, tuple[str, ...]]]:
    """What stands in the table for one type: rows' names and the options of their exports."""
    worked = ("--pass", passes)
    return [(f"{kind}, importance", ("--no-refine",)), (f"{kind}, {passes}", (*worked, "--no-refine")),
            (f"{kind}, {passes} and refined", (*worked, "--refine"))]  # fmt: skip


def measure(arguments: argparse.Namespace, folder: Path) -> list[Measured]:
    """Write and score every file; scored by pairs, so that the disk holds two."""
    found = []
    for kind in arguments.types.split(","):
        for name, options in variants(kind, arguments.passes):
            quantised, floats = folder / "quantised.gguf", folder / "floats.gguf"
            export(arguments.model, kind, quantised, *options, "--calibration", str(arguments.calibration))
            export(quantised, "f16", floats, "--allow-requantize")
            scoring = ScoringOptions(ctx=arguments.ctx, max_chunks=arguments.chunks, threads=arguments.threads)
            run = run_validation(arguments.model, [quantised, floats], arguments.text, scoring)
            both, weights = (candidate.validation.statistics for candidate in run.candidates)
            figures = (both.divergence.mean, both.agreement.mean, weights.divergence.mean)
            found.append(Measured(name, quantised.stat().st_size, *figures))
            print(f"{name}: {figures}", file=sys.stderr, flush=True)
    return found


def show(found: list[Measured]) -> None:
    """A table."""
    print("| file | bytes | mean KL | top-1 | weights alone | activations |\n|---|---|---|---|---|---|")
    for each in found:
        shares = f"{each.weights:.5f} | {each.both - each.weights:.5f}"
        print(f"| {each.name} | {each.bytes:,} | {each.both:.5f} | {each.top1:.4f} | {shares} |")


def target_types(checkpoint: Checkpoint, name: str) -> dict[str, GGMLType]:
    """Checkpoint name → type in a file of target `name`."""
    mapped = map_checkpoint(checkpoint)
    candidates = [Candidate(each, rows.shape, GGMLType.F32) for each, rows in mapped.tensors.items()]
    types = choose_types(candidates, find_target(name), mapped.facts, Overrides(), has_importance=True)
    return {source: types[each] for each, rows in mapped.tensors.items() for source in rows.origin.names}


def groups(samples: Mapping[str, InputSample]) -> Iterator[list[str]]:
    """Names of matrices that read the same input, as their samples tell."""
    left = dict(samples)
    while left:
        first = next(iter(left))
        inputs = left[first].inputs
        same = [name for name, each in left.items() if each.inputs.shape == inputs.shape and _equal(each, inputs)]
        for name in same:
            del left[name]
        yield same


def _equal(sample: InputSample, inputs: torch.Tensor) -> bool:
    return bool((sample.inputs == inputs).all())


def where(arguments: argparse.Namespace, folder: Path) -> None:
    """Predicted cost of activations by group of matrices, the largest first."""
    checkpoint = open_checkpoint(arguments.model)
    types = target_types(checkpoint, arguments.where)
    tokens = read_calibration(checkpoint, arguments.calibration, "cpu", SEQUENCES, LENGTH).tokens
    sampler = InputSampler(checkpoint, tokens, folder / "inputs")
    head, lines = sampler.head(), []
    specs, name = checkpoint.tensors.specs, sampler.model.head_name
    if name is not None:
        block = activation_block(types[name])
        lines.append((input_cost(head.inputs, head.gradients.square(), block), [name]))
    for _block, samples in sampler.blocks():
        for members in groups(samples):
            block = activation_block(types[members[0]])
            gradient = sum((samples[each].gradients for each in members[1:]), samples[members[0]].gradients)
            lines.append((input_cost(samples[members[0]].inputs, gradient.square(), block), members))
    kinds: dict[str, float] = defaultdict(float)
    for cost, members in lines:
        kinds[members[0].split(".")[-2]] += cost
    print("| matrices | predicted KL | bytes that float16 adds |\n|---|---|---|")
    for kind, cost in kinds.items():
        print(f"| all that read what {kind} reads | {cost:.6f} | |")
    for cost, members in sorted(lines, reverse=True)[: arguments.lines]:
        added = 0
        for each in members:
            rows, columns = specs[each].rows, specs[each].columns
            added += rows * (2 * columns - types[each].row_bytes(columns))
        print(f"| {', '.join(members)} | {cost:.6f} | {added:,} |")


def main() -> None:
    """Measure, or predict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--types", default=TYPES)
    parser.add_argument("--pass", dest="passes", default="smooth", help="what stands beside no pass")
    parser.add_argument("--where", metavar="TYPE")
    parser.add_argument("--lines", type=int, default=12)
    parser.add_argument("--ctx", type=int, default=384)
    parser.add_argument("--chunks", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.where is None and arguments.text is None:
        parser.error("expected --text, what files are scored on, or --where")
    with tempfile.TemporaryDirectory() as name:
        if arguments.where is not None:
            where(arguments, Path(name))
        else:
            show(measure(arguments, Path(name)))


if __name__ == "__main__":
    from figure_file import run_with_figure

    run_with_figure(main)
