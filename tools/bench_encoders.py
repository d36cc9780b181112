"""edgepack's encoders of ggml's types beside ggml's own, in turns on the same rows: time and weighted error.

    python tools/bench_encoders.py [MODEL] [--weights 4m] [--rounds 3]

Rows are the model's weights, 768 each; importance is a random number a column. ns are of one core's processor time for
each weight, errors Σ importance · (w - ŵ)² of ours over ggml's: below 1 is better.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from synthetic_checkpoint import parse_parameters

from edgepack.export.checkpoint import open_checkpoint
from edgepack.model import read_tensor
from edgepack.quant.codecs.ggml.codec import dequantize_rows, quantize_rows
from edgepack.quant.codecs.ggml.encoders import ENCODED_TYPES, QUANTIZERS

if TYPE_CHECKING:
    from edgepack.gguf.types import GGMLType

_COLUMNS = 768


def model_rows(model: Path, weights: int) -> np.ndarray:
    """The model's matrices inside its blocks, as rows of 768."""
    source = open_checkpoint(model).tensors
    names = [name for name, spec in source.specs.items() if len(spec.shape) == 2 and ".layers." in name]
    flat, count = [], 0
    for name in names:
        flat.append(read_tensor(source, name).reshape(-1))
        count += flat[-1].size
        if count >= weights:
            break
    joined = np.concatenate(flat)[:weights]
    return joined[: joined.size // _COLUMNS * _COLUMNS].reshape(-1, _COLUMNS)


def compare(kind: GGMLType, rows: np.ndarray, importance: np.ndarray | None, rounds: int) -> tuple[float, float, float]:
    """Ns a weight of ours and of ggml's, and the ratio of their errors."""
    seconds: dict[str, list[float]] = {name: [] for name in QUANTIZERS}
    errors: dict[str, float] = {}
    for _ in range(rounds):
        for name in QUANTIZERS:
            started = time.process_time()
            blocks = quantize_rows(kind, rows, importance, name)
            seconds[name].append((time.process_time() - started) / rows.size * 1e9)
            gap: Any = dequantize_rows(kind, blocks, *rows.shape) - rows
            squares = np.square(gap, dtype=np.float64).sum(0)
            errors[name] = float(squares.sum() if importance is None else squares @ importance)
    return median(seconds["edgepack"]), median(seconds["ggml"]), errors["edgepack"] / errors["ggml"]


def main() -> None:
    """Every type that has an encoder, with and without importance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=Path("tests/data/books-llama-6m"))
    parser.add_argument("--weights", type=parse_parameters, default=4 * 10**6)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rows = model_rows(options.model, options.weights)
    importance = np.random.default_rng(0).lognormal(0, 1, rows.shape[1]).astype(np.float32)
    print(f"{options.model.name}: {rows.size:,} weights")
    print("| type | ns, ours | ns, ggml | ratio | error, ours / ggml | with importance: ns, ours | ns, ggml | ratio "
          "| error, ours / ggml |\n|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    for kind in sorted(ENCODED_TYPES):
        cells = [kind.name]
        for weights in (None, importance):
            ours, theirs, error = compare(kind, rows, weights, options.rounds)
            cells += [f"{ours:.1f}", f"{theirs:.1f}", f"{ours / theirs:.3f}", f"{error:.4f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
