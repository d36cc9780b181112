"""What tuning by distillation gives at equal bytes, and what gives it: one file, tuned in several ways.

    python tools/bench_tuning.py MODEL TUNING_TEXT EVALUATION_TEXT [--targets gguf-q2k,refined-gguf-q3km]
        [--imatrix FILE] [--steps 60 | --minutes 10] [--parts default,rows+integers,rows,vectors,steps,integers]
        [--moves ste,gumbel] [--rates 1] [--figure tuning-books]

Every file is exported once and tuned with each choice of parts, of how integers move and of a factor on the rates; a
target after `refined-` is refined on the tuning text first, one after `importance-` gets an importance matrix of it.
`default` are the parts that `edgepack tune` takes by itself. With --minutes every way has the same time. Prints
held-out divergence before and after as `edgepack tune` sees it (torch, activations rounded), mean KL and top-1 on text
that neither the importance matrix nor the tuning saw as llama.cpp runs it, and processor seconds of the tuning alone.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

from bench_importance import result_of


def score(file: Path, options: argparse.Namespace) -> tuple[float, float]:
    """Mean KL and top-1 agreement of a file, run by llama.cpp."""
    found = result_of(
        "validate", file, "--reference", options.model, "--text", options.evaluation, "--chunks", options.chunks,
        "--no-floor", "--threads", options.threads,
    )  # fmt: skip
    return found["mean_kl"], found["top1_agreement"]


def export(file: Path, target: str, options: argparse.Namespace) -> None:
    """Export a target: as it is, with importance, or refined."""
    matrix = () if options.imatrix is None else ("--imatrix", options.imatrix)
    for prefix, how in (("refined-", "--refine"), ("importance-", "--no-refine")):
        if target.startswith(prefix):
            target, matrix = target.removeprefix(prefix), ("--calibration", options.tuning, how)
    result_of("export", options.model, "--target", target, "-o", file, *matrix, "--threads", options.threads)


def tune(
    file: Path, out: Path, parts: str, moves: str, rate: float, options: argparse.Namespace
) -> tuple[dict[str, Any], float]:
    """What `edgepack tune --json` prints, and the processor seconds that it took."""
    budget = ("--minutes", options.minutes) if options.steps is None else ("--steps", options.steps)
    chosen = [each for part in parts.split("+") if part != "default" for each in ("--part", part)]
    began = time.process_time()
    found = result_of(
        "tune", file, "--reference", options.model, "--text", options.tuning, "--rate", rate, "--device",
        options.device, "--moves", moves, "--ctx", options.ctx, "--sequences", options.sequences, *chosen, *budget,
        "-o", out,
    )  # fmt: skip
    return found, time.process_time() - began


def main() -> None:
    """Export, tune in every way, validate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("tuning", type=Path)
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("--targets", default="gguf-q2k")
    parser.add_argument("--imatrix", type=Path)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--parts", default="rows+integers,rows,vectors,steps,integers")
    parser.add_argument("--moves", default="ste")
    parser.add_argument("--rates", default="1")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ctx", type=int, default=256)
    parser.add_argument("--sequences", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--chunks", type=int, default=20, help="pieces of text that are evaluated")
    options = parser.parse_args()
    about, scores = "target | parts | integers by | rate | steps", "unseen KL | after | ratio | top-1 | after"
    print(f"| {about} | held-out KL | after | {scores} | CPU s |\n|{'---|' * 13}")
    with tempfile.TemporaryDirectory() as folder:
        for target in options.targets.split(","):
            file, out = Path(folder) / f"{target}.gguf", Path(folder) / "tuned.gguf"
            export(file, target, options)
            before, top = score(file, options)
            ways = product(options.parts.split(","), options.moves.split(","), map(float, options.rates.split(",")))
            for parts, moves, rate in ways:
                out.unlink(missing_ok=True)
                found, seconds = tune(file, out, parts, moves, rate, options)
                after, tuned_top = score(out, options)
                own = found["held_out_kl"]
                print(
                    f"| {target} | {parts} | {moves} | {rate:g} | {found['best_step']} of {found['steps']}"
                    f" | {own['before']:.5f} | {own['after']:.5f} | {before:.5f} | {after:.5f}"
                    f" | {after / before:.3f} | {top:.4f} | {tuned_top:.4f} | {seconds:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    from figure_file import run_with_figure

    run_with_figure(main)
