"""What tuning by distillation gives at equal bytes, and what gives it: one file, tuned in several ways.

    python tools/bench_tuning.py MODEL TUNING_TEXT EVALUATION_TEXT [--targets gguf-q2k,gguf-q4km] [--imatrix FILE]
        [--steps 60 | --minutes 10] [--parts rows+integers,rows,vectors,steps,integers] [--rates 1]

Every file is exported once and tuned with each choice of parts and factor on the rates. Prints held-out divergence
before and after as `edgepack tune` sees it (torch, activations rounded), mean KL and top-1 on text that neither the
importance matrix nor the tuning saw as llama.cpp runs it, and processor seconds of the tuning alone.
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


def tune(file: Path, out: Path, parts: str, rate: float, options: argparse.Namespace) -> tuple[dict[str, Any], float]:
    """What `edgepack tune --json` prints, and the processor seconds that it took."""
    budget = ("--minutes", options.minutes) if options.steps is None else ("--steps", options.steps)
    chosen = [each for part in parts.split("+") for each in ("--part", part)]
    began = time.process_time()
    found = result_of(
        "tune", file, "--reference", options.model, "--text", options.tuning, "--rate", rate, "--device",
        options.device, "--ctx", options.ctx, "--sequences", options.sequences, *chosen, *budget, "-o", out,
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
    parser.add_argument("--rates", default="1")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ctx", type=int, default=256)
    parser.add_argument("--sequences", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--chunks", type=int, default=20, help="pieces of text that are evaluated")
    options = parser.parse_args()
    print("| target | parts | rate | steps | held-out KL | after | unseen KL | after | ratio | top-1 | after | CPU s |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for target in options.targets.split(","):
            file, out = Path(folder) / f"{target}.gguf", Path(folder) / "tuned.gguf"
            matrix = () if options.imatrix is None else ("--imatrix", options.imatrix)
            result_of("export", options.model, "--target", target, "-o", file, *matrix)
            before, top = score(file, options)
            for parts, rate in product(options.parts.split(","), map(float, options.rates.split(","))):
                out.unlink(missing_ok=True)
                found, seconds = tune(file, out, parts, rate, options)
                after, tuned_top = score(out, options)
                own = found["held_out_kl"]
                print(
                    f"| {target} | {parts} | {rate:g} | {found['best_step']} of {found['steps']} | {own['before']:.5f}"
                    f" | {own['after']:.5f} | {before:.5f} | {after:.5f} | {after / before:.3f} | {top:.4f}"
                    f" | {tuned_top:.4f} | {seconds:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    from figure_file import run_with_figure

    run_with_figure(main)
