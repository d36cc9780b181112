"""How fast a validation is beside its slower scorer alone, what memory it takes, how small a stored reference is.

    python tools/bench_validate.py [--text FILE] [--chunks N] [--rounds N]

Every figure comes from this run; speeds are the medians of alternating rounds (reference, candidate, both …).
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from edgepack.edge.fidelity.certificate import store
from edgepack.edge.fidelity.scorers.scorer import Chunking
from edgepack.edge.fidelity.scoring import ScoringOptions, open_candidate
from edgepack.edge.fidelity.stored_reference import encode
from edgepack.edge.fidelity.validate import validate
from edgepack.pipeline.export import run_export
from edgepack.pipeline.fidelity import open_reference
from edgepack.pipeline.request import ExportRequest
from edgepack.text_file import read_text

if TYPE_CHECKING:
    from edgepack.edge.fidelity.scorers.scorer import Scorer

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "tests/data/books-llama-6m"
CTX = 128


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, default=ROOT / "LICENSE")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--chunks", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)  # a child process measures itself
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(peak_memory(arguments.memory_of, arguments.model, arguments.text, arguments.chunks))
        return
    with tempfile.TemporaryDirectory() as folder:
        candidate = Path(folder) / "q5km.gguf"
        run_export(ExportRequest(arguments.model, "gguf-q5km", output=candidate))
        bench_speed(candidate, arguments)
        bench_memory(candidate, arguments)
        bench_storage(candidate, arguments)


def bench_speed(candidate_path: Path, arguments: argparse.Namespace) -> None:
    """Each scorer alone, with the threads that it has in a validation, and both together."""
    options = ScoringOptions(ctx=CTX, max_chunks=arguments.chunks, floor=False)
    text, chunking = read_text(arguments.text), Chunking(CTX, None, arguments.chunks)
    with (
        closing(open_reference(arguments.model, options)) as reference,
        closing(open_candidate(candidate_path, options)) as candidate,
    ):
        count = chunking.scored(len(reference.tokenizer.tokenize(text)))
        seconds: dict[str, list[float]] = {"reference alone": [], "candidate alone": [], "validation": []}
        for _ in range(arguments.rounds):
            seconds["reference alone"].append(alone(reference, text, chunking))
            seconds["candidate alone"].append(alone(candidate, text, chunking))
            seconds["validation"].append(validate(reference, [candidate], text, chunking)[0].seconds)
    speeds = {name: count / median(values) for name, values in seconds.items()}
    for name, speed in speeds.items():
        print(f"{name:<16} {speed:8.0f} scored tokens/s")
    slower = min(speeds["reference alone"], speeds["candidate alone"])
    print(f"validation / slower scorer alone: {speeds['validation'] / slower:.2f} (wanted: at least 0.9)\n")


def alone(scorer: Scorer, text: str, chunking: Chunking) -> float:
    """Seconds of one scorer over the text."""
    chunks = list(chunking.chunks(scorer.tokenizer.tokenize(text), scorer.tokenizer.bos))
    began = time.perf_counter()
    for chunk in chunks:
        scorer.score(chunk)
    return time.perf_counter() - began


def bench_memory(candidate: Path, arguments: argparse.Namespace) -> None:
    """Peak memory of a fresh process for a text and for four times as much of it."""
    peaks = []
    for factor in (1, 4):
        chunks = max(4, arguments.chunks // 4) * factor
        command = [sys.executable, __file__, "--memory-of", str(candidate), "--text", str(arguments.text),
                   "--model", str(arguments.model), "--chunks", str(chunks)]  # fmt: skip
        peaks.append((chunks, int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)))
    (few, small), (many, large) = peaks
    print(f"peak memory: {small / 1e6:.0f} MB for {few} chunks, {large / 1e6:.0f} MB for {many}")
    print(f"ratio {large / small:.3f} for 4 times the text (wanted: 1)\n")


def peak_memory(candidate_path: Path, model: Path, text: Path, chunks: int) -> int:
    """Peak resident bytes of this process after a validation."""
    options = ScoringOptions(ctx=CTX, max_chunks=chunks, floor=False)
    with (
        closing(open_reference(model, options)) as reference,
        closing(open_candidate(candidate_path, options)) as candidate,
    ):
        validate(reference, [candidate], read_text(text), Chunking(CTX, None, chunks))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def bench_storage(candidate_path: Path, arguments: argparse.Namespace) -> None:
    """Bytes of a stored reference beside llama.cpp's base logits of the same positions."""
    options = ScoringOptions(ctx=CTX, max_chunks=arguments.chunks, floor=False)
    with (
        closing(open_reference(arguments.model, options)) as reference,
        closing(open_candidate(candidate_path, options)) as candidate,
    ):
        text = read_text(arguments.text)
        stored = store(reference, candidate, text, Chunking(CTX, None, arguments.chunks), {})
    size, positions = len(encode(stored)), len(stored.candidate_top)
    vocabulary, chunks = stored.reference.vocabulary, len(stored.tokens)
    # perplexity.cpp: "_logits_", three counts, every token, then 2 * ((vocabulary + 1) / 2) + 4 numbers of 16 bits.
    base = 8 + 12 + 4 * chunks * CTX + positions * 2 * (2 * ((vocabulary + 1) // 2) + 4)
    print(f"stored reference: {size:,} bytes for {positions:,} positions, {size / positions:.1f} each")
    print(f"llama.cpp's base logits: {base:,} bytes; ratio {100 * size / base:.2f} % (wanted: at most 1 %)")


if __name__ == "__main__":
    main()
