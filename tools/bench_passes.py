#!/usr/bin/env python3
"""Measures every pass beside plain quantisation with an importance matrix: one table a model.

    .venv/bin/python tools/bench_passes.py MODEL --calibration TEXT --text EVAL [--rows REGEX] [--json OUT]

Columns: bytes of the GGUF (with its adapter), bytes of the archive, perplexity, mean KL, top-1 agreement, processor
seconds of passes and export, and the peak resident memory of the process that ran them (one that has imported torch and
transformers and done nothing takes 200 to 350 MB). All candidates are scored by llama.cpp on the same text, against the
model in torch.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import re
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from part_cost import peak_memory

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from edgepack.edge.fidelity.scorers.scorer import Chunk
    from edgepack.edge.fidelity.scorers.torch import TorchScorer
    from edgepack.edge.fidelity.validate import Validation

_LONGEST_TOKEN = 12  # characters: more text than this for each scored token is not read


@dataclass(frozen=True)
class Row:
    """One line of the table: a target and the passes before it."""

    label: str
    target: str
    passes: tuple[str, ...] = ()
    importance: bool = True


@dataclass(frozen=True)
class Measured:
    """What a row gave."""

    label: str
    gguf_bytes: int
    archive_bytes: int
    perplexity: float
    mean_kl: float
    top1: float
    seconds: float
    peak_memory: int
    notes: str


def rows() -> list[Row]:
    """Every line, baselines first."""
    plain = [Row(f"{target}, no imatrix", target, (), False) for target in ("q4_k_m", "q3_k_m")]
    plain += [Row(f"{target}, imatrix", target) for target in ("q8_0", "q5_k_m", "q4_k_m", "q3_k_l", "q3_k_m", "q2_k")]
    pruned = [
        Row(f"{level:.0%} {name} → q8_0", "q8_0", (f"prune:{settings},sparsity={level}",), False)
        for level in (0.5, 0.6, 0.65, 0.7)
        for name, settings in (
            ("magnitude (row)", "method=magnitude,compare=row"),
            ("Wanda (row)", "method=wanda,compare=row"),
            ("magnitude (layer)", "method=magnitude,compare=layer"),
            ("Wanda (layer)", "method=wanda,compare=layer"),
            ("SparseGPT", "method=sparsegpt"),
        )
    ]
    pruned += [
        Row(f"2:4 {name} → q8_0", "q8_0", (f"prune:method={name.lower()},pattern=2:4",), False)
        for name in ("magnitude", "Wanda", "SparseGPT")
    ]
    pruned += [
        Row(f"{level:.0%} {name} OWL → q8_0", "q8_0", (f"prune:{settings},sparsity={level},allocation=owl",), False)
        for level in (0.6, 0.7)
        for name, settings in (("Wanda (layer)", "method=wanda,compare=layer"), ("SparseGPT", "method=sparsegpt"))
    ]
    pruned += [
        Row("1 layer dropped → q8_0", "q8_0", ("prune:method=layers,layers=1",), False),
    ]
    rounded = []
    for target in ("q4_k_m", "q3_k_m"):
        rounded += [
            Row(f"AWQ → {target}, no imatrix", target, ("awq",), False),
            Row(f"AWQ → {target}, imatrix", target, ("awq",)),
            Row(f"AWQ scales, no clip → {target}, imatrix", target, ("awq:clip=false",)),
            Row(f"AWQ clip, no scales → {target}, imatrix", target, ("awq:scale=false",)),
            Row(f"AWQ search-bits 1 → {target}, imatrix", target, ("awq:search_bits=1",)),
            Row(f"GPTQ → {target}, imatrix", target, ("gptq",)),
            Row(f"AWQ scales + GPTQ → {target}, imatrix", target, ("awq:clip=false", "gptq")),
            Row(f"smooth → {target}, imatrix", target, ("smooth",)),
            Row(f"smooth + GPTQ → {target}, imatrix", target, ("smooth", "gptq")),
        ]
    rounded.append(Row("smooth → q8_0", "q8_0", ("smooth",), False))
    rounded.append(Row("GPTQ → q2_k, imatrix", "q2_k", ("gptq",)))
    corrected = [
        Row(f"{target} + rank {rank} ({kind})", target, (f"lowrank:method=correction,rank={rank},covariance={kind}",))
        for target in ("q2_k", "q3_k_s")
        for rank, kind in ((8, "full"), (16, "full"), (32, "full"), (32, "diagonal"))
    ]
    corrected.append(Row("q3_k_s, imatrix", "q3_k_s"))
    factorised = [
        Row("plain SVD k = 9 → f16", "f16", ("lowrank:method=svd,rank=9",), False),
        Row("plain SVD 95 % variance → f16", "f16", ("lowrank:method=svd,variance=0.95",), False),
        Row("whitened SVD k = 9 → f16", "f16", ("lowrank:method=whitened,rank=9",), False),
    ]
    return [*plain, *pruned, *rounded, *corrected, *factorised]


class Remembered:
    """A scorer that keeps the logits of each chunk, so that they are computed once for all rows."""

    def __init__(self, scorer: TorchScorer) -> None:
        self.label, self.tokenizer = scorer.label, scorer.tokenizer
        self.vocabulary, self.context_limit, self.close = scorer.vocabulary, scorer.context_limit, scorer.close
        self._scorer, self._known = scorer, dict[int, Any]()

    def score(self, chunk: Chunk) -> NDArray[np.float32]:
        """As `Scorer.score`."""
        if chunk.index not in self._known:
            self._known[chunk.index] = self._scorer.score(chunk)
        logits: NDArray[np.float32] = self._known[chunk.index]
        return logits


@dataclass(frozen=True)
class Made:
    """The files of a row and what they cost."""

    size: int
    adapters: tuple[Path, ...]
    seconds: float
    peak_memory: int
    notes: str


def make(model: Path, row: Row, settings: Mapping[str, Any], folder: Path, threads: int) -> Made:
    """Run the passes of `row` and write its files into `folder`; called in a process of its own."""
    import torch

    from edgepack.export.checkpoint import open_checkpoint
    from edgepack.export.gguf_file import write_gguf
    from edgepack.export.recipe.corrections import write_correction
    from edgepack.export.recipe.passes import prepare_export
    from edgepack.export.recipe.values import RecipeOptions
    from edgepack.quant.passes.recipe import inline_recipe
    from edgepack.quant.types.targets import find_target

    if threads:
        torch.set_num_threads(threads)
    started = time.process_time()
    recipe = inline_recipe(row.passes, {**settings, "importance": row.importance})
    prepared = prepare_export(open_checkpoint(model), recipe, find_target(row.target), RecipeOptions(folder))
    path, adapters = folder / "model.gguf", []
    size = write_gguf(prepared.plan, path, threads=threads or None)
    for step in prepared.corrections:
        adapters.append(folder / "model-lora.gguf")
        size += write_correction(prepared, step, path, adapters[-1])[0]
    seconds = time.process_time() - started
    return Made(size, tuple(adapters), seconds, peak_memory(), _notes(prepared.figures))


class Bench:
    """Makes and scores one row after the other.

    Args:
        options: as `add_options` defines them.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        from edgepack.edge.fidelity.scorers.scorer import Chunking
        from edgepack.edge.fidelity.scorers.torch import TorchScorer

        self.model, self.threads = options.model, options.threads
        self.settings = {"text": str(options.calibration), "sequences": options.sequences, "length": options.length}
        self.reference = Remembered(TorchScorer(options.model, threads=options.threads))
        ctx = min(options.ctx or options.length, self.reference.context_limit)
        self.text = options.text.read_text(encoding="utf-8")[: _LONGEST_TOKEN * options.chunks * ctx]
        self.chunking = Chunking(ctx, max_chunks=options.chunks)
        self.processes = multiprocessing.get_context("forkserver")
        self.processes.set_forkserver_preload(["torch", "transformers.models.auto.modeling_auto", "accelerate"])

    def measure(self, row: Row, folder: Path) -> Measured:
        """Run, write, pack and score one row; passes and writing run in a fresh process, whose memory is theirs."""
        from edgepack.packaging.pack import pack_archive

        with ProcessPoolExecutor(1, self.processes) as process:
            made = process.submit(make, self.model, row, self.settings, folder, self.threads).result()
        path = folder / "model.gguf"
        packed = pack_archive(path, folder / "model.edgepack", include=list(made.adapters)).bytes
        statistics = self.score(path, made.adapters).statistics
        return Measured(
            row.label, made.size, packed, math.exp(float(statistics.candidate_loss.mean)),
            float(statistics.divergence.mean), float(statistics.agreement.mean), made.seconds, made.peak_memory,
            made.notes,
        )  # fmt: skip

    def score(self, path: Path, adapters: tuple[Path, ...]) -> Validation:
        """The file against the model in torch."""
        from contextlib import closing

        from edgepack.edge.fidelity.scorers.gguf import GGUFScorer
        from edgepack.edge.fidelity.validate import validate

        with closing(GGUFScorer(path, self.chunking.ctx, threads=self.threads, adapters=adapters)) as candidate:
            return validate(self.reference, [candidate], self.text, self.chunking)[0]


def _notes(figures: Iterable[Mapping[str, float | int | str]]) -> str:
    """Measured figures of the passes that a reader may want beside the columns."""
    wanted = ("sparsity", "kept_variance", "mean_error_ratio", "dropped", "greatest_rank")
    kept = [(key, value) for values in figures for key, value in values.items() if key in wanted]
    return ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in kept)


def print_row(found: Measured) -> None:
    """One line of the table."""
    archive = f"{found.archive_bytes:,}" if found.archive_bytes else ""  # none was made of a file with an adapter
    sizes = f"{found.gguf_bytes:,} | {archive}"
    fidelity = f"{found.perplexity:.3f} | {found.mean_kl:.5f} | {found.top1:.4f}"
    cost = f"{found.seconds:.1f} | {found.peak_memory / 1e6:.0f}"
    print(f"| {found.label} | {sizes} | {fidelity} | {cost} | {found.notes} |", flush=True)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `Bench` is told: models, texts, sizes."""
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--sequences", type=int, default=128, help="of calibration")
    parser.add_argument("--length", type=int, default=128, help="tokens of a sequence")
    parser.add_argument("--chunks", type=int, default=96, help="of the text that is scored")
    parser.add_argument("--ctx", type=int, default=0, help="tokens of a scored chunk; 0 for --length")
    parser.add_argument("--threads", type=int, default=0, help="of passes, export and scoring; 0 is every core")


def main() -> None:
    """Parse options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--rows", default="", help="only rows whose label matches this regular expression")
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args()
    bench = Bench(options)
    tokens = f"{options.sequences} × {options.length} calibration tokens"
    scored = f"{options.chunks} chunks of {bench.chunking.ctx} tokens of {options.text.name} scored"
    print(f"{options.model.name}: {tokens}, {scored}")
    columns = ["pass and setting", "GGUF bytes", "archive bytes", "perplexity", "mean KL", "top-1"]
    columns += "seconds", "peak MB", "measured"
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    found = []
    for row in rows():
        if re.search(options.rows, row.label):
            with tempfile.TemporaryDirectory() as folder:
                found.append(bench.measure(row, Path(folder)))
            print_row(found[-1])
            if options.json:
                options.json.write_text(json.dumps([asdict(row) for row in found], indent=1) + "\n")


if __name__ == "__main__":
    from figure_file import run_with_figure

    run_with_figure(main)
