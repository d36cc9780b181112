"""Whole models through every edge target: sizes, fidelity and speed, beside llama.cpp's types from the same run.

    python tools/bench_variants.py MODEL --text eval.txt [--calibration calibration.txt]
        [--targets edge-nf4 'edge-vptq3 token_embd=trajectory' …]

A target may be followed by `--tensor-codec` expressions, and by `blind`: VPTQ and SeedLM without the text. Prints one
Markdown row a target; each figure is edgepack's own command's (`--json`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

EDGE = ("edge-nf4", "edge-seedlm4", "edge-seedlm3", "edge-vptq4", "edge-vptq3", "edge-vptq2", "edge-trajectory",
        "edge-bezier", "edge-bezier4", "edge-ternary")  # fmt: skip
CHAINS = ("edge-seedlm4+vptq2+trajectory",)
BLIND = "blind"
PEERS = ("gguf-q6k", "gguf-q5km", "gguf-q4km", "gguf-q3km", "gguf-q2k")


def edgepack(*arguments: object) -> dict[str, Any]:
    """The JSON object that a command prints."""
    command = [sys.executable, "-m", "edgepack", *map(str, arguments), "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode not in (0, 1):
        sys.exit(f"{' '.join(command)}\n{result.stderr}")
    parsed: dict[str, Any] = json.loads(result.stdout)
    return parsed


def measure(model: Path, target: str, reference: Path, folder: Path, options: argparse.Namespace) -> str:
    """One row of the table."""
    file, archive, native = folder / "model.gguf", folder / "model.edgepack", folder / "native.gguf"
    words = target.split()
    target, codecs = words[0], [word for word in words[1:] if word != BLIND]
    calibrated = options.calibration and BLIND not in words and ("vptq" in target or "seedlm" in target)
    calibration = ("--calibration", options.calibration) if calibrated else ()
    exported = edgepack("export", model, "--target", target, "-o", file, "--force", *calibration,
                        *(part for codec in codecs for part in ("--tensor-codec", codec)))  # fmt: skip
    packed = edgepack("pack", file, "-o", archive, "--force")
    edge = target.startswith("edge-")
    unpacked = edgepack("unpack", "--native", file, "-o", native, "--force") if edge else exported
    fidelity = edgepack("validate", native if edge else file, "--reference", reference, "--text", options.text,
                        "--chunks", options.chunks, "--ctx", options.ctx)  # fmt: skip
    ran = edgepack("run", archive, "--prompt", options.prompt, "--max-tokens", 32, "--temperature", 0)
    perplexity = fidelity["perplexity"]
    statistics = " (calibrated)" if calibrated else ""
    return (
        f"| {' '.join(words)}{statistics} "
        f"| {exported['bytes'] / 1e6:.3f} | {packed['bytes'] / 1e6:.3f} | {unpacked['bytes'] / 1e6:.3f} "
        f"| {perplexity['candidate']:.3f} | {perplexity['candidate'] / perplexity['reference']:.4f} "
        f"| {fidelity['mean_kl']:.5f} | {100 * fidelity['top1_agreement']:.2f} | {exported['seconds']:.1f} "
        f"| {unpacked['seconds']:.2f} | {ran['tokens']} |"
    )


def main() -> None:
    """Measure every target that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--chunks", type=int, default=24)
    parser.add_argument("--ctx", type=int, default=512, help="tokens of a chunk; no more than the model makes use of")
    parser.add_argument("--prompt", default="Once upon a time")
    parser.add_argument("--targets", nargs="*", default=[*EDGE, *CHAINS, *PEERS])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["EDGEPACK_CACHE"] = str(folder / "cache")
        reference = folder / "reference.gguf"
        edgepack("export", options.model, "--target", "gguf-f32", "-o", reference)
        print(
            f"{options.model.name}, {options.chunks} chunks of {options.ctx} tokens of {options.text.name},"
            " reference: its own float32"
        )
        print("| target | variant MB | archive MB | native MB | perplexity | ratio | mean KL | top-1 % | coding s "
              "| decoding s | `run` tokens |")  # fmt: skip
        print("|---|---|---|---|---|---|---|---|---|---|---|")
        for target in options.targets:
            print(measure(options.model, target, reference, folder, options), flush=True)


if __name__ == "__main__":
    from figure_file import run_with_figure

    run_with_figure(main)
