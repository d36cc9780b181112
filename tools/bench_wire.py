#!/usr/bin/env python3
"""What the wire costs, beside its limits: sweep, curvature, and whole exports, each of them in a process of its own.

    .venv/bin/python tools/bench_wire.py [--layers 2,4,8] [--width 384] [--bits 4] [--states 8,0,64,256]
    .venv/bin/python tools/bench_wire.py --model MODEL --calibration TEXT --max-size 3.7MB     one real model instead
    .venv/bin/python tools/bench_wire.py --only sweep,curvature,models

Models of one width and more and more layers show what memory depends on: a block and its activations, not the model.
The limit beside it is the float32 size of the largest matrix or block, which any block-wise pass must hold, and the
first line is an empty run: Python with torch and transformers loaded, before any weight is read.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from synthetic_checkpoint import LlamaShape, write_llama
from wire_rates import print_curvature, print_sweeps

from edgepack.quantities import format_duration, format_size

CORES = 2  # that limits are stated for
OWN_WORDS = Path(__file__).resolve().parent.parent / "tests/data/own-words.txt"
# Runs the command line and prints what the system says of the process: Linux counts ru_maxrss in KiB.
_CHILD = """
import json, resource, sys
from edgepack.cli import main
try:
    main(sys.argv[1:])
except SystemExit as ended:
    code = int(ended.code or 0)
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"code": code, "peak": used.ru_maxrss * 1024, "cpu": used.ru_utime + used.ru_stime}), file=sys.stderr)
"""


def export(arguments: list[str]) -> tuple[dict[str, float], float]:
    """Figures of one export and its wall time in seconds."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, "export", *arguments, "--json"], capture_output=True, text=True, check=False
    )
    figures = json.loads(done.stderr.strip().splitlines()[-1])
    if figures["code"]:
        raise SystemExit(done.stderr)
    return figures | json.loads(done.stdout.strip().splitlines()[-1]), time.monotonic() - started


_EMPTY = """
import resource, torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def write_random(folder: Path, shape: LlamaShape) -> Path:
    """A Llama of normal numbers that do not repeat: an archive must find nothing in them but their entropy."""
    import torch
    from safetensors.torch import save_file

    write_llama(folder, shape)  # for its configuration and tokenizer
    generator, tensors = torch.Generator().manual_seed(0), {}
    for name, spec in shape.specs().items():
        values = torch.randn(spec.shape, generator=generator) * 0.05
        tensors[name] = (values + 1 if len(spec.shape) == 1 else values).to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def empty_run() -> int:
    """Peak memory of a process that only imports what an export imports."""
    return int(subprocess.run([sys.executable, "-c", _EMPTY], capture_output=True, text=True, check=True).stdout)


def largest_part(shape: LlamaShape) -> int:
    """Float32 bytes of the embedding or a block, whichever is more."""
    per_block = sum(spec.rows * spec.columns for name, spec in shape.specs().items() if ".layers.0." in name)
    return 4 * max(shape.vocabulary * shape.hidden, per_block)


def print_row(name: str, weights: int, limit: int, found: dict[str, float], seconds: float) -> None:
    """One line of the table."""
    cells = [
        name, f"{weights / 1e6:.1f} M", format_duration(seconds), f"{found['cpu']:.0f} s", str(found["trials"]),
        f"{found['cpu'] * 1e9 / weights / 60 / CORES:.1f}", format_size(int(found["peak"])),
        format_size(limit) if limit else "", f"{found['bits_per_weight']:.2f}", f"{found['predicted_kl']:.4f}",
    ]  # fmt: skip
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Parse options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default="2,4,8")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--bits", default="4")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--calibration", type=Path, default=OWN_WORDS)
    parser.add_argument("--max-size")
    parser.add_argument("--states", default="8,64,256")
    parser.add_argument("--only", default="sweep,curvature,models")
    options = parser.parse_args()
    parts = {"models"} if options.model else set(options.only.split(","))
    if "sweep" in parts:
        print_sweeps(list(map(int, options.states.split(","))))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "curvature" in parts:
            print()
            model = write_random(folder / "passes", LlamaShape(576, 4, 1536, 9, 3, 4096))
            print_curvature(model, "4 layers of 576", 16, 256)
        if "models" in parts:
            print()
            print_models(options, folder)


def print_models(options: argparse.Namespace, folder: Path) -> None:
    """The table of whole exports."""
    columns = ("model", "weights", "wall", "processor", "tries, at most 3", "min a B on 2 cores, at most 10", "memory")
    print("| " + " | ".join((*columns, "largest block", "bits", "predicted KL")) + " |\n" + "|---" * 10 + "|")
    rest = ["--target", "wire", "--host", "q8", "-o", str(folder / "out.edgepack"), "--pack", "--force"]
    rest += ["--calibration", str(options.calibration)]
    if options.model:
        found, seconds = export([str(options.model), *rest, "--max-size", options.max_size])
        weights = round(8 * found["archive_bytes"] / found["bits_per_weight"])
        print_row(options.model.name, weights, 0, found, seconds)
        return
    print(f"| imports alone | | | | | | {format_size(empty_run())} | | | |")
    for layers in map(int, options.layers.split(",")):
        shape = LlamaShape(options.width, layers, 3 * options.width, 8, 4, 4096)
        model = write_random(folder / f"llama-{layers}", shape)
        found, seconds = export([str(model), *rest, "--bits", options.bits])
        weights = round(8 * found["archive_bytes"] / found["bits_per_weight"])
        print_row(f"{layers} layers of {options.width}", weights, largest_part(shape), found, seconds)


if __name__ == "__main__":
    from figure_file import run_with_figure

    run_with_figure(main)
