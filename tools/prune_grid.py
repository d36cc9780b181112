#!/usr/bin/env python3
"""Prunes a model to several sparsities, prints perplexity, agreement and archive size of each, and picks one.

    .venv/bin/python tools/prune_grid.py MODEL --calibration TEXT --text EVAL [--levels 0.3,0.5,0.6] [--method wanda]

The rule: the smallest archive whose first choices agree with the original's in at least --min-agreement of all tokens.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from bench_passes import Bench, Row, add_options

from edgepack.errors import EdgepackError
from edgepack.quant.passes.prune.grid import Level, choose_level, measure_levels


def main() -> int:
    """Measure, print, choose."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--levels", default="0.3,0.4,0.5,0.6,0.7")
    parser.add_argument("--method", default="sparsegpt", choices=["magnitude", "wanda", "sparsegpt"])
    parser.add_argument("--target", default="q8_0")
    parser.add_argument("--min-agreement", type=float, default=0.7)
    options = parser.parse_args()
    bench = Bench(options)

    def measure(sparsity: float) -> Level:
        settings = f"prune:method={options.method},sparsity={sparsity}"
        with tempfile.TemporaryDirectory() as folder:
            found = bench.measure(Row(f"{sparsity:g}", options.target, (settings,), importance=False), Path(folder))
        print(f"{sparsity:8.0%} {found.perplexity:11.3f} {found.top1:10.4f} {found.archive_bytes:14,}", flush=True)
        return Level(sparsity, found.perplexity, found.top1, found.archive_bytes)

    print(f"{'sparsity':>8} {'perplexity':>11} {'agreement':>10} {'archive bytes':>14}")
    try:
        levels = measure_levels([float(text) for text in options.levels.split(",")], measure)
        chosen = choose_level(levels, options.min_agreement)
    except EdgepackError as error:
        print(f"prune_grid: {error}", file=sys.stderr)
        return error.exit_code
    print(f"chosen: {chosen.sparsity:.0%}, the smallest archive with an agreement of {options.min_agreement:g} or more")
    return 0


if __name__ == "__main__":
    sys.exit(main())
