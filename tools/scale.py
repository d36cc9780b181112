#!/usr/bin/env python3
"""How long every command takes on an 8 B model here: measured on one of its layers, then multiplied.

    python tools/scale.py [--only 'gptq|wire'] [--text TEXT] [--sequences N]

The model measured is a Llama with one layer of an 8 B's shape (width 4096, feed-forward 14336) and a small vocabulary,
random weights in bf16: its matrices are those that an 8 B model has 32 times, so that what grows with the width is in
the figure. A command that goes through weights is multiplied by weights; one that takes a text through blocks by
layers, and the head's product (the vocabulary of 128,256, for every token whose logits or gradients it needs) is added
at the rate at which this machine multiplies matrices in the same run. Starting Python is taken off before and added
after. Passes take the sequences that recipes take by default. Wall time of all cores; the tables' limit is 12 hours.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from math import prod
from pathlib import Path

from synthetic_checkpoint import LlamaShape, write_llama

from edgepack.quantities import format_duration, format_size

OWN_WORDS = Path(__file__).resolve().parent.parent / "tests/data/own-words.txt"
LAYERS, VOCABULARY = 32, 128_256  # of Llama 3.1 8B
ONE_LAYER = LlamaShape(hidden=4096, layers=1, feed_forward=14336, heads=32, kv_heads=8, vocabulary=4096)
WHOLE = LlamaShape(hidden=4096, layers=LAYERS, feed_forward=14336, heads=32, kv_heads=8, vocabulary=VOCABULARY)
LIMIT_HOURS = 12
_CHILD = """
import re, sys
from pathlib import Path
from edgepack.cli import execute
code = execute(sys.argv[1:])
print(1024 * int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]), file=sys.stderr)
sys.exit(code)
"""


@dataclass(frozen=True)
class Command:
    """One command to be measured.

    Attributes:
        name: as the table says it.
        arguments: of edgepack; MODEL, TEXT, OUT and N (sequences) stand for what the run has.
        by: what it is multiplied by: `weights`, or `layers`.
        head: products of the head for each token of the text: 1 for logits, 3 with gradients, 0 for none.
    """

    name: str
    arguments: str
    by: str = "weights"
    head: int = 0


TAKEN = "--calibration TEXT --sequences N"
COMMANDS = (
    Command("export q8_0", "export MODEL --target gguf-q8 -o OUT/q8.gguf"),
    Command("export q4_k_m", "export MODEL --target gguf-q4km -o OUT/q4.gguf"),
    Command("export q5_k_m", "export MODEL --target gguf-q5km -o OUT/q5.gguf"),
    Command("pack", "pack OUT/q5.gguf -o OUT/q5.edgepack"),
    Command("verify", "verify OUT/q5.edgepack"),
    Command("unpack", "unpack OUT/q5.edgepack -o OUT/back.gguf"),
    Command("export q4_k_m, importance", f"export MODEL --target gguf-q4km {TAKEN} -o OUT/i.gguf", "layers", 1),
    Command("pass prune, magnitude", "export MODEL --target gguf-q8 --pass prune:method=magnitude,sparsity=0.5 "
            "-o OUT/m.gguf", "layers"),
    Command("pass prune, sparsegpt", "export MODEL --target gguf-q8 --pass prune:method=sparsegpt,sparsity=0.5 "
            "--calibration TEXT -o OUT/s.gguf", "layers"),
    Command("pass gptq", "export MODEL --target gguf-q4km --pass gptq --calibration TEXT -o OUT/g.gguf", "layers"),
    Command("pass awq", "export MODEL --target gguf-q4km --pass awq --calibration TEXT -o OUT/a.gguf", "layers"),
    Command("pass lowrank, svd", "export MODEL --target gguf-q8 --pass lowrank:method=svd,rank=256 -o OUT/l.gguf",
            "layers"),
    Command("edge-nf4", "export MODEL --target edge-nf4 -o OUT/nf4.gguf"),
    Command("edge-ternary", "export MODEL --target edge-ternary -o OUT/t.gguf"),
    Command("edge-vptq3", "export MODEL --target edge-vptq3 -o OUT/v.gguf"),
    Command("edge-trajectory", "export MODEL --target edge-trajectory -o OUT/tr.gguf"),
    Command("edge-bezier4", "export MODEL --target edge-bezier4 -o OUT/b.gguf"),
    Command("edge-seedlm4, pruned", "export MODEL --target edge-seedlm4:search=pruned -o OUT/sp.gguf"),
    Command("wire, 4 bits", f"export MODEL --target wire --bits 4 {TAKEN} -o OUT/w.edgepack", "layers", 3),
)  # fmt: skip


def weights_of(shape: LlamaShape) -> int:
    """Weights of all tensors."""
    return sum(prod(spec.shape) for spec in shape.specs().values())


def run(arguments: list[str]) -> tuple[float, int]:
    """(wall seconds, peak bytes) of a command in a process of its own."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", _CHILD, *arguments], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode not in (0, 1):
        raise SystemExit(f"edgepack {' '.join(arguments)}: {done.stderr}")
    return seconds, int(done.stderr.strip().splitlines()[-1])


def product_rate() -> float:
    """Multiply-adds a second of a float32 product of this width, on all cores."""
    import torch

    left, right = torch.randn(1024, 4096), torch.randn(4096, 4096)
    left @ right
    started = time.perf_counter()
    for _ in range(4):
        left @ right
    return 4 * 1024 * 4096 * 4096 / (time.perf_counter() - started)


def whole_seconds(command: Command, seconds: float, start: float, tokens: int, rate: float) -> float:
    """What the command would take on the whole model."""
    share = weights_of(WHOLE) / weights_of(ONE_LAYER) if command.by == "weights" else LAYERS
    head = command.head * tokens * VOCABULARY * WHOLE.hidden / rate
    return start + (seconds - start) * share + head


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a regular expression of names")
    parser.add_argument("--text", type=Path, default=OWN_WORDS)
    parser.add_argument("--sequences", type=int, default=32, help="of 512 tokens, for calibration; 32")
    options = parser.parse_args()
    chosen = [command for command in COMMANDS if re.search(options.only, command.name)]
    rate, start = product_rate(), run(["--version"])[0]
    print(f"{os.cpu_count()} cores, {rate / 1e9:.0f} G multiply-adds a second; {options.sequences} × 512 tokens\n")
    print("| command | one layer | peak memory | 8 B | multiplied by |\n|---|---|---|---|---|")
    late = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = {"MODEL": str(write_llama(folder / "model", ONE_LAYER)), "TEXT": str(options.text), "OUT": name,
                 "N": str(options.sequences)}  # fmt: skip
        for command in chosen:
            arguments = [
                re.sub(r"^(MODEL|TEXT|OUT|N)\b", lambda m: words[m[0]], part) for part in command.arguments.split()
            ]
            seconds, peak = run(arguments)
            whole = whole_seconds(command, seconds, start, 512 * options.sequences, rate)
            late += [command.name] if whole > LIMIT_HOURS * 3600 else []
            factor = f"{command.by}{' and the head' if command.head else ''}"
            cells = [command.name, format_duration(seconds), format_size(peak), format_duration(whole), factor]
            print("| " + " | ".join(cells) + " |", flush=True)
    print(f"\nOver {LIMIT_HOURS} hours: {', '.join(late) or 'none'}.")


if __name__ == "__main__":
    from figure_file import run_with_figure

    run_with_figure(main)
