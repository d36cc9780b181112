#!/usr/bin/env python3
"""Measures what training gives back after compression: one table for all parts, the same tokens scored in every row.

    .venv/bin/python tools/bench_learning.py MODEL --texts FOLDER [--only prune,ternary] [--steps N] [--figure A,B]

FOLDER is what `fidelity_text.py` writes. Columns: bytes of the GGUF (with its adapter) and of the archive, perplexity,
mean KL and top-1 agreement against the model in torch, processor seconds and peak memory of the process that trained,
pruned and wrote. A forecast of the processor's minutes is printed first, from one step that is measured; `--dry-run`
ends there. The second table is what the issue asks to be shown.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from bench_passes import Bench, Measured, print_row
from fidelity_text import CALIBRATION, TESTS
from learning_parts import Claim, LearningRow, Plan, open_part, part_names

if TYPE_CHECKING:
    from collections.abc import Iterable

_ASKING = 4 / 3  # of the time of learning: the original's answers are one forward to a forward and a backward
_REST = 0.5  # minutes of a row beside its learning: passes, writing, scoring


def seconds_a_sequence(plan: Plan) -> float:
    """Processor seconds of one sequence forwards and backwards, measured on a sequence of any tokens."""
    import torch

    from edgepack.export.checkpoint import open_checkpoint
    from edgepack.quant.learning.models import trainable_model

    torch.set_num_threads(plan.threads)
    model = trainable_model(open_checkpoint(plan.model))
    tokens = torch.randint(3, 1000, (1, plan.length), generator=torch.Generator().manual_seed(0))
    spent = []
    for _ in range(3):
        began = time.process_time()
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        spent.append(time.process_time() - began)
    return min(spent[1:])


def forecast(rows: Iterable[LearningRow], plan: Plan) -> None:
    """Print the processor's minutes of each row and of all to standard error.

    Without what llama.cpp takes to rank all examples of the text before a recovery (its rate of prompt processing).
    """
    each, total = seconds_a_sequence(plan), 0.0
    for row in rows:
        minutes = _REST + _ASKING * each * row.sequences / 60
        total += minutes
        print(f"forecast: {minutes:7.1f} min  {row.label}", file=sys.stderr)
    print(f"forecast: {total:7.1f} min of the processor in all, {each:.2f} s a sequence", file=sys.stderr, flush=True)


def claims_table(claims: Iterable[Claim]) -> None:
    """Print what the rows show."""
    print("\n| claim | bar | measured | |")
    print("|---|---|---|---|")
    words = {True: "holds", False: "**missed**", None: ""}
    for claim in claims:
        print(f"| {claim.text} | {claim.bar} | {claim.found} | {words[claim.holds]} |")


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--texts", type=Path, required=True, help="the folder that fidelity_text.py wrote")
    parser.add_argument("--only", default=",".join(part_names()), help="parts, separated by commas")
    parser.add_argument("--rows", default="", help="only rows whose label matches this regular expression")
    parser.add_argument("--steps", type=int, default=600, help="of every training")
    parser.add_argument("--batch", type=int, default=8, help="sequences a step")
    parser.add_argument("--length", type=int, default=128, help="tokens of a sequence")
    parser.add_argument("--sequences", type=int, default=128, help="of calibration, where nothing is trained")
    parser.add_argument("--sparsities", default="0.6,0.65,0.7")
    parser.add_argument("--chunks", type=int, default=96, help="of the text that is scored")
    parser.add_argument("--ctx", type=int, default=0, help="tokens of a scored chunk; 0 for --length")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dry-run", action="store_true", help="print the forecast alone")
    parser.add_argument("--json", type=Path, help="keep all figures here; rows that it has are not measured again")
    options = parser.parse_args(arguments)
    options.calibration, options.text = options.texts / CALIBRATION[1], options.texts / TESTS[0]
    unknown = sorted(set(options.only.split(",")) - set(part_names()))
    if unknown:
        parser.error(f"--only: expected parts among {', '.join(part_names())}, got '{unknown[0]}'")
    return options


def main() -> None:
    """Parse options, forecast, measure, print."""
    options = options_of()
    sparsities = tuple(float(each) for each in options.sparsities.split(","))
    plan = Plan(
        options.model, options.texts, options.steps, options.batch, options.length, sparsities, options.threads
    )  # fmt: skip
    parts = [open_part(name) for name in options.only.split(",")]
    rows = [row for part in parts for row in part.rows(plan) if re.search(options.rows, row.label)]
    known = {} if options.json is None or not options.json.is_file() else json.loads(options.json.read_text())
    forecast([row for row in rows if row.label not in known], plan)
    if options.dry_run:
        return
    bench, found = Bench(options), {label: Measured(**each) for label, each in known.items()}
    columns = ["row", "GGUF bytes", "archive bytes", "perplexity", "mean KL", "top-1", "seconds", "peak MB", "measured"]
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    for row in rows:
        if row.label not in found:
            with tempfile.TemporaryDirectory(prefix="learning-") as folder:
                found[row.label] = row.measure(bench, Path(folder))
            if options.json is not None:
                options.json.write_text(json.dumps({name: asdict(each) for name, each in found.items()}, indent=1))
        print_row(found[row.label])
    claims_table([claim for part in parts for claim in part.claims(found)])


if __name__ == "__main__":
    from figure_file import run_with_figure

    run_with_figure(main)
