"""What each type keeps of a model: every target of a ladder exported, then all of them held against the original.

    python tools/bench_types.py tests/data/books-llama-6m --text ../shared/text/eval.txt
    python tools/bench_types.py MODEL --text FILE --targets q8,q4km --chunks 40

Prints one Markdown row a type, with the original's own noise under them.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from figure_file import run_with_figure

import edgepack
from edgepack.pipeline.export import run_export
from edgepack.pipeline.request import ExportRequest

if TYPE_CHECKING:
    from edgepack.api.validation import ValidationResult

TARGETS = "f32,bf16,q8,q6k,q5km,q4km,q3km,q2k"
COLUMNS = ("file", "bytes", "agreement (95 % interval)", "mean KL", "99.9 % KL", "perplexity ratio")


def row(name: str, size: str, result: ValidationResult) -> str:
    """One line of the table."""
    low, high = result.top1_interval
    worst = result.validation.statistics.histogram.quantile(0.999)
    agreement = f"{100 * result.top1_agreement:.2f} ({100 * low:.2f}–{100 * high:.2f})"
    return f"| {name} | {size} | {agreement} | {result.mean_kl:.2g} | {worst:.2g} | {result.perplexity_ratio:.4f} |"


def main() -> None:
    """Export, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--targets", default=TARGETS)
    parser.add_argument("--chunks", type=int, help="default: the whole text")
    parser.add_argument("--ctx", type=int, help="default: what the model makes use of")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for target in options.targets.split(","):
            files.append(Path(folder) / f"{target}.gguf")
            run_export(ExportRequest(options.model, f"gguf-{target}", output=files[-1]))
        scoring = edgepack.ScoringOptions(ctx=options.ctx, max_chunks=options.chunks, greedy=0)
        found = edgepack.compare(files, options.model, text=options.text, scoring=scoring)
        print(f"{options.model.name}: {found.results[0].tokens:,} tokens of {options.text.name}\n")
        print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
        for file, result in zip(files, found.results, strict=True):
            print(row(file.stem, f"{file.stat().st_size:,}", result))
        for floor in found.run.floor:
            low, high = floor.statistics.agreement.share_interval()
            agreement = f"{100 * floor.statistics.agreement.mean:.2f} ({100 * low:.2f}–{100 * high:.2f})"
            print(f"| itself in {floor.candidate} | | {agreement} | {floor.statistics.divergence.mean:.2g} | | |")


if __name__ == "__main__":
    run_with_figure(main)
