"""Two ways to collect an importance matrix, in turns on the same random Llama: llama.cpp's callback and torch's hooks.

    python tools/bench_imatrix.py [--size 100m] [--chunks 4] [--threads 2] [--rounds 3]

Prints tokens per second and per CPU second of each round and the ratios of the medians, and how far the two results
lie apart. llama.cpp reads a GGUF, which a checkpoint must become first; that time is printed too.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from synthetic_checkpoint import LlamaShape, parse_parameters, write_llama

from edgepack.edge.llama.importance_collect import CollectOptions, collect_importance
from edgepack.export.checkpoint import open_checkpoint
from edgepack.export.gguf_file import write_gguf
from edgepack.export.mapped_model import open_model
from edgepack.export.plan import plan_export
from edgepack.processors import default_threads
from edgepack.quant.types.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Callable

CHUNK = 512


def clocked(work: Callable[[], object], tokens: int) -> tuple[float, float]:
    """Tokens per second and per CPU second of `work`."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return tokens / (time.perf_counter() - wall), tokens / (time.process_time() - cpu)


def main() -> None:
    """Make the model, run both ways in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="100m")
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    import torch

    from edgepack.quant.calibration.collect import collect

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        source, gguf = Path(folder) / "model", Path(folder) / "model.gguf"
        write_llama(source, LlamaShape.of_size(parse_parameters(options.size)))
        started = time.perf_counter()
        write_gguf(plan_export(open_model(source), find_target("gguf-bf16")), gguf, threads=options.threads)
        print(f"export to bf16: {time.perf_counter() - started:.1f} s")
        checkpoint = open_checkpoint(source)
        tokens = np.random.default_rng(0).integers(300, 4000, size=(options.chunks, CHUNK))
        text = "It was the best of times, it was the worst of times. " * (options.chunks * CHUNK)
        how = CollectOptions(chunks=options.chunks, threads=options.threads)
        ways: dict[str, Callable[[], object]] = {
            "llama.cpp callback": lambda: collect_importance(gguf, text, "bench", how),
            "torch hooks": lambda: collect(checkpoint, tokens, batch=1),
        }
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for number in range(options.rounds):
            for name, work in ways.items():
                rates[name].append(clocked(work, tokens.size))
                wall, cpu = rates[name][-1]
                print(f"round {number + 1}  {name:<20} {wall:8.1f} tokens/s  {cpu:8.1f} tokens/CPU s", flush=True)
        first, second = ([median(values) for values in zip(*rates[name], strict=True)] for name in ways)
        print(f"callback / hooks: {first[0] / second[0]:.2f} in wall time, {first[1] / second[1]:.2f} in CPU time")


if __name__ == "__main__":
    main()
