"""Two ways to collect an importance matrix, in turns on the same random Llama: llama.cpp's callback and torch's hooks.

Beside each stands what the same engine does without collecting: prompt processing, and a forward without the head.

    python tools/bench_imatrix.py [--size 100m] [--chunks 4] [--threads 2] [--rounds 3]

Prints tokens per second and per CPU second of each round to standard error, then the medians as a table. llama.cpp
reads a GGUF, which a checkpoint must become first; that time is printed too.
"""

from __future__ import annotations

import argparse
import sys
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
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from edgepack.model import Checkpoint

CHUNK = 512
LEAST = 0.7  # of the bare rate, that collecting should reach


def clocked(work: Callable[[], object], tokens: int) -> tuple[float, float]:
    """Tokens per second and per CPU second of `work`."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return tokens / (time.perf_counter() - wall), tokens / (time.process_time() - cpu)


def bare_llama(gguf: Path, tokens: NDArray[np.int64], threads: int) -> Callable[[], object]:
    """llama.cpp's prompt processing of each chunk, with nothing collected."""
    import llama_cpp

    model = llama_cpp.Llama(str(gguf), n_ctx=CHUNK, n_batch=CHUNK, n_ubatch=CHUNK, n_threads=threads,
                            n_threads_batch=threads, verbose=False)  # fmt: skip

    def work() -> None:
        for chunk in tokens.tolist():
            model.reset()
            model.eval(chunk)

    return work


def bare_torch(checkpoint: Checkpoint, tokens: NDArray[np.int64]) -> Callable[[], object]:
    """A forward of each chunk through every block, with nothing collected and without the head."""
    import torch

    from edgepack.quant.calibration.blocks import whole_model
    from edgepack.quant.calibration.products import layers_multiply_in, own_products

    model = whole_model(checkpoint)

    def work() -> None:
        with torch.no_grad(), layers_multiply_in(own_products(checkpoint), torch.device("cpu")):
            for chunk in torch.from_numpy(tokens).split(1):
                model.model(input_ids=chunk, use_cache=False)

    return work


def ways(folder: Path, options: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """What is clocked, by name; each collecting way is followed by the bare one that it is held against."""
    from edgepack.quant.calibration.collect import collect

    source, gguf = folder / "model", folder / "model.gguf"
    write_llama(source, LlamaShape.of_size(parse_parameters(options.size)))
    started = time.perf_counter()
    write_gguf(plan_export(open_model(source), find_target("gguf-bf16")), gguf, threads=options.threads)
    print(f"export to bf16: {time.perf_counter() - started:.1f} s", file=sys.stderr)
    checkpoint = open_checkpoint(source)
    tokens = np.random.default_rng(0).integers(300, 4000, size=(options.chunks, CHUNK))
    text = "It was the best of times, it was the worst of times. " * (options.chunks * CHUNK)
    how = CollectOptions(chunks=options.chunks, threads=options.threads)
    return {
        "llama.cpp callback": lambda: collect_importance(gguf, text, "bench", how),
        "llama.cpp prompt": bare_llama(gguf, tokens, options.threads),
        "torch hooks": lambda: collect(checkpoint, tokens, batch=1),
        "torch forward": bare_torch(checkpoint, tokens),
    }


def print_table(rates: Mapping[str, list[tuple[float, float]]]) -> None:
    """Medians of the rates, and of each collecting way against the bare one after it."""
    print("| way | tokens a second | tokens a core-second | of the bare rate, wall | processor | at least |")
    print("|---" * 6 + "|")
    names = list(rates)
    for place, name in enumerate(names):
        wall, cpu = (median(values) for values in zip(*rates[name], strict=True))
        cells = ["", "", ""]
        if place % 2 == 0:
            bare = rates[names[place + 1]]
            shares = ((a / c, b / d) for (a, b), (c, d) in zip(rates[name], bare, strict=True))
            cells = [f"{median(share):.2f}" for share in zip(*shares, strict=True)] + [str(LEAST)]
        print(f"| {name} | {wall:,.0f} | {cpu:,.0f} | {' | '.join(cells)} |")


def main() -> None:
    """Make the model, run all ways in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="100m")
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = ways(Path(folder), options)
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in found}
        for number in range(options.rounds):
            for name, work in found.items():
                rates[name].append(clocked(work, options.chunks * CHUNK))
                wall, cpu = rates[name][-1]
                told = f"round {number + 1}  {name:<20} {wall:8.1f} tokens/s  {cpu:8.1f} tokens/CPU s"
                print(told, file=sys.stderr, flush=True)
    print_table(rates)


if __name__ == "__main__":
    from figure_file import run_with_figure

    run_with_figure(main)
