"""Holds predicted tokens per second against measured ones on this machine's CPU.

For each model the probe is measured anew (its cache is thrown away), then bench's tg128, alternately; medians are
compared. Run: python tools/fit_speed_truth.py [--rounds 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

from tiny_models import Shape, write_random

from edgepack.edge.bench import measure
from edgepack.edge.fit.probe import probe_cpu
from edgepack.edge.fit.shape import read_shape
from edgepack.edge.fit.speed import probed_tokens_per_second
from edgepack.edge.llama.check import read_runnable
from edgepack.edge.llama.cpu_threads import best_threads
from edgepack.edge.llama.options import RuntimeOptions
from edgepack.gguf.types import GGMLType

# Some are their own twin (up to 256 MiB); the last one is predicted from some of its layers.
MODELS = {
    "12 M F16": Shape(layers=4, width=384, heads=6, kv_heads=2, head_width=64, feed_forward=1024, n_vocab=8000,
                      type=GGMLType.F16),
    "60 M Q8_0": Shape(layers=8, width=768, heads=12, kv_heads=4, head_width=64, feed_forward=2048, n_vocab=8000,
                       type=GGMLType.Q8_0),
    "120 M Q4_K": Shape(layers=8, width=1024, heads=16, kv_heads=4, head_width=64, feed_forward=4096, n_vocab=16000,
                        type=GGMLType.Q4_K),
    "210 M F16": Shape(layers=12, width=1024, heads=16, kv_heads=4, head_width=64, feed_forward=4096, n_vocab=16000,
                       type=GGMLType.F16),
}  # fmt: skip


def compare(name: str, shape: Shape, folder: Path, rounds: int, threads: int) -> dict[str, object]:
    """Predicted and measured tokens per second of one model."""
    path = write_random(folder / "model.gguf", shape)
    header = read_runnable(path)
    model = read_shape(header)
    threads = threads or best_threads(model.bytes_per_token)
    predicted, measured = [], []
    for _ in range(rounds):
        for kept in (folder / "cache" / "probes").glob("*.json"):
            kept.unlink()
        predicted.append(probed_tokens_per_second(model, probe_cpu(header, model, threads)))
        options = RuntimeOptions(n_ctx=512, threads=threads, max_outputs=1)
        result = measure(path, options, "here", repetitions=2, n_prompt=16)
        measured.append(result.tg.tokens_per_second)
    path.unlink()
    guess, truth = statistics.median(predicted), statistics.median(measured)
    return {"model": name, "threads": threads, "predicted": guess, "measured": truth, "ratio": guess / truth}


def main() -> None:
    """Measure every model and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0: what fit would choose")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "cache").mkdir()
        os.environ["EDGEPACK_CACHE"] = str(folder / "cache")
        rows = [compare(*item, folder, arguments.rounds, arguments.threads) for item in MODELS.items()]
    if arguments.json:
        print(json.dumps(rows))
        return
    print(f"{'model':<12} {'threads':>7} {'predicted':>10} {'measured':>10} {'ratio':>6}  (tokens/s)")
    for row in rows:
        print("{model:<12} {threads:>7} {predicted:>10.1f} {measured:>10.1f} {ratio:>6.2f}".format(**row))
    print(f"worst: {max(abs(float(str(row['ratio'])) - 1) for row in rows):.0%} off")


if __name__ == "__main__":
    main()
