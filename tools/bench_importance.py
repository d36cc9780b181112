"""What an importance matrix is worth: the same targets with and without one, against the original.

    python tools/bench_importance.py MODEL CALIBRATION_TEXT EVALUATION_TEXT [--targets gguf-q4km,gguf-q3km,gguf-q2k]

Prints bytes, per-token agreement with its interval, mean KL divergence and the ratio of divergences. Calibration and
evaluation must be different texts.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

from edgepack.cli import execute as run


def result_of(*arguments: object) -> dict[str, Any]:
    """The JSON that a command prints."""
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout):
        code = run([*map(str, arguments), "--json"])
    if code not in (0, 1):
        raise SystemExit(code)
    result: dict[str, Any] = json.loads(stdout.getvalue())
    return result


def main() -> None:
    """Collect, export both ways, validate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("--targets", default="gguf-q4km,gguf-q3km,gguf-q2k")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calibration-ctx", type=int, default=512, help="as long as the model makes use of")
    parser.add_argument("--calibration-chunks", type=int, default=128)
    parser.add_argument("--chunks", type=int, default=40, help="pieces of text that are evaluated")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        matrix = Path(folder) / "imatrix.gguf"
        collect = ("imatrix", options.model, "--text", options.calibration, "--chunks", options.calibration_chunks)
        collect += ("--threads", options.threads, "--ctx", options.calibration_ctx)
        chunks = result_of(*collect, "-o", matrix)["chunks"]
        print(f"collected over {chunks} pieces of {options.calibration_ctx} tokens")
        print("| target | matrix | bytes | agreement | interval | mean KL | KL ratio |\n|---|---|---|---|---|---|---|")
        for target in options.targets.split(","):
            plain = 0.0
            for label, extra in (("none", ()), ("yes", ("--imatrix", matrix))):
                out = Path(folder) / f"{target}-{label}.gguf"
                size = result_of("export", options.model, "--target", target, "-o", out, *extra)["bytes"]
                score = result_of(
                    "validate", out, "--reference", options.model, "--text", options.evaluation,
                    "--chunks", options.chunks, "--no-floor", "--threads", options.threads,
                )  # fmt: skip
                low, high = score["top1_interval"]
                plain = plain or score["mean_kl"]
                print(
                    f"| {target} | {label} | {size:,} | {score['top1_agreement']:.4f} | {low:.4f}–{high:.4f}"
                    f" | {score['mean_kl']:.5f} | {score['mean_kl'] / plain:.3f} |",
                    flush=True,
                )


if __name__ == "__main__":
    from figure_file import run_with_figure

    run_with_figure(main)
