"""The codecs' yardstick: every codec and every ggml type on Gaussian, heavy-tailed and real matrices.

    python tools/bench_codecs.py [--model MODEL] [--calibration TEXT] [--blocks 2] [--plot out.svg]
        [--skip-search] [--skip-tables]

For each: bits a weight (side data included), relative squared error, excess bits over the Gaussian rate-distortion
bound (R + ½·log2 of the error), bits after an order-0 entropy coder of each byte plane, coding and decoding speed.
With --calibration, codecs see the Hessians of the text's first half, and real matrices also get the error weighted by
diag(H), Σ h·(W - Ŵ)² / Σ h·W², and that of the layer's output, tr(E·H·Eᵀ) / tr(W·H·Wᵀ), with H from its second half;
`NAME blind` sees no statistics and `NAME imatrix` diag(H) alone, as the ggml types do. Speeds are weights a second of
processor time, so of one core, and other programs matter less; SeedLM's stand beside the float32 matrix-product rate
of the same minute, measured alike.
"""

from __future__ import annotations

import argparse
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from bench_codecs_plot import write_plot
from bench_codecs_search import print_search_rates, print_weighted_rates

from edgepack.export.checkpoint import open_checkpoint
from edgepack.gguf.types import GGMLType
from edgepack.model import read_tensor
from edgepack.quant.codecs.codec import NO_STATISTICS, Statistics
from edgepack.quant.codecs.decode import decode
from edgepack.quant.codecs.ggml.codec import dequantize_rows, needs_importance, quantize_rows
from edgepack.quant.codecs.targets import find_edge_target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgepack.quant.calibration.collect import LinearStatistics

CODECS = ("ternary", "ternary:fit=least-squares", "vptq2", "vptq3", "vptq4", "seedlm3", "seedlm4",
          "seedlm4:search=pruned", "nf4", "bezier4", "bezier", "trajectory", "trajectory:points=1600,classes=1",
          "trajectory:points=1600,classes=3")  # fmt: skip
BLIND, DIAGONAL = " blind", " imatrix"
# Small matrices are decoded several times: these many weights, of which the first call's allocations are a small part.
_DECODED_WEIGHTS = 1 << 22
TYPES = ("TQ1_0", "TQ2_0", "Q2_K", "IQ2_XS", "IQ3_S", "Q3_K", "IQ4_XS", "IQ4_NL", "Q4_0", "Q4_K", "Q5_0", "Q5_K",
         "Q6_K", "Q8_0")  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line of the table, over all matrices of a source."""

    name: str
    bits: float
    error: float
    weighted_error: float | None
    output_error: float | None
    entropy_bits: float
    encode_rate: float
    decode_rate: float

    def excess(self, error: float) -> float:
        """Bits above the Gaussian rate-distortion bound at an error."""
        return self.bits + 0.5 * float(np.log2(max(error, 1e-30)))


@dataclass(frozen=True)
class Sample:
    """A matrix, what the codecs know of its inputs, and the Hessian that they are judged by."""

    weight: NDArray[np.float32]
    statistics: Statistics = NO_STATISTICS
    judge: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Outcome:
    """What coding one matrix gave: bits in all, byte planes, seconds."""

    stored_bits: float
    planes: list[NDArray[np.uint8]]
    decoded: NDArray[np.float32]
    encode_seconds: float
    decode_seconds: float


def entropy_bits(plane: NDArray[np.uint8]) -> float:
    """Bits of all bytes of a plane under its own order-0 model."""
    counts = np.bincount(plane.reshape(-1), minlength=256)
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / counts.sum())).sum())


def run_codec(name: str, sample: Sample) -> Outcome:
    """Code with one of our codecs."""
    target, blind, _ = name.partition(BLIND)
    target, diagonal, _ = target.partition(DIAGONAL)
    (codec,) = find_edge_target(target).codecs
    started = time.process_time()
    known = Statistics(sample.statistics.importance) if diagonal else sample.statistics
    encoded = codec.encode(sample.weight, NO_STATISTICS if blind else known)
    coded = time.process_time()
    times = max(1, _DECODED_WEIGHTS // sample.weight.size)
    for _ in range(times):
        decoded = decode(encoded, threads=1)
    done = time.process_time()
    planes = [
        np.ascontiguousarray(array).view(np.uint8).reshape(len(array), -1) for array in encoded.components.values()
    ]
    split = [plane[:, byte] for plane in planes for byte in range(plane.shape[1])]
    return Outcome(8 * encoded.nbytes, split, decoded, coded - started, (done - coded) / times)


def run_type(name: str, sample: Sample) -> Outcome:
    """Code with a ggml type, with the importance where it is known."""
    kind = GGMLType[name]
    weights = sample.statistics.column_weights(sample.weight.shape[1])
    if weights is None and needs_importance(kind):
        weights = np.ones(sample.weight.shape[1])
    started = time.process_time()
    blocks = quantize_rows(kind, sample.weight, None if weights is None else weights.astype(np.float32))
    coded = time.process_time()
    decoded = dequantize_rows(kind, blocks, *sample.weight.shape)
    done = time.process_time()
    planes = blocks.reshape(-1, kind.block_bytes)
    split = [planes[:, byte] for byte in range(kind.block_bytes)]
    return Outcome(8 * blocks.nbytes, split, decoded, coded - started, done - coded)


def measure(name: str, samples: Sequence[Sample]) -> Row:
    """Code every matrix of a source; sums, not means of ratios."""
    runner = run_type if name in GGMLType.__members__ else run_codec
    outcomes = [runner(name, sample) for sample in samples]
    count = sum(sample.weight.size for sample in samples)
    errors = [[], [], []]  # type: list[list[float]]
    for sample, outcome in zip(samples, outcomes, strict=True):
        for known, error in zip(errors, relative_errors(sample, outcome.decoded), strict=True):
            known.append(error)
    sizes = [sample.weight.size for sample in samples]
    # Each matrix has a variance of its own, so logarithms of errors are averaged: they are what bits compare with.
    means = [2 ** float(np.average(np.log2(np.maximum(known, 1e-30)), weights=sizes)) for known in errors]
    judged = all(sample.judge is not None for sample in samples)
    return Row(
        name,
        sum(outcome.stored_bits for outcome in outcomes) / count,
        means[0],
        means[1] if judged else None,
        means[2] if judged else None,
        sum(entropy_bits(plane) for outcome in outcomes for plane in outcome.planes) / count,
        count / sum(outcome.encode_seconds for outcome in outcomes),
        count / sum(outcome.decode_seconds for outcome in outcomes),
    )


def relative_errors(sample: Sample, decoded: NDArray[np.float32]) -> tuple[float, float, float]:
    """Squared, weighted and output error, each relative; the latter two are 1 where no Hessian judges."""
    weight = sample.weight.astype(np.float64)
    error = weight - decoded
    plain = float((error**2).sum() / (weight**2).sum())
    if sample.judge is None:
        return plain, 1.0, 1.0
    weighted = float((np.diagonal(sample.judge) * error**2).sum() / (np.diagonal(sample.judge) * weight**2).sum())
    return plain, weighted, float(((error @ sample.judge) * error).sum() / ((weight @ sample.judge) * weight).sum())


def real_samples(model: Path, calibration: Path | None, blocks: int, match: str) -> list[Sample]:
    """The matrices of the first `blocks` layers whose names match, with Hessians where there is a text."""
    checkpoint = open_checkpoint(model)
    halves: list[dict[str, LinearStatistics]] = [{}, {}]
    if calibration is not None:
        from edgepack.quant.calibration.collect import collect
        from edgepack.quant.calibration.text import text_sequences

        text = calibration.read_text()
        for half, part in zip(halves, (text[: len(text) // 2], text[len(text) // 2 :]), strict=True):
            tokens = text_sequences(checkpoint, part, sequences=64)
            half.update(collect(checkpoint, tokens, with_hessian=True).statistics)
    names = [name for name, spec in checkpoint.tensors.specs.items() if len(spec.shape) == 2]
    wanted = re.compile(rf"\.layers\.({'|'.join(map(str, range(blocks)))})\..*({match})")
    samples = []
    for name in filter(wanted.search, names):
        seen, judge = (half.get(name) for half in halves)
        statistics = Statistics(seen.mean_square, seen.hessian) if seen else NO_STATISTICS
        weight = read_tensor(checkpoint.tensors, name)
        samples.append(Sample(weight, statistics, None if judge is None else np.asarray(judge.hessian, np.float64)))
    return samples


def all_matrices(model: Path) -> list[NDArray[np.float32]]:
    """Every matrix of a model, the embedding too."""
    checkpoint = open_checkpoint(model)
    names = [name for name, spec in checkpoint.tensors.specs.items() if len(spec.shape) == 2]
    return [read_tensor(checkpoint.tensors, name) for name in names]


def print_table(title: str, rows: Sequence[Row]) -> None:
    """A Markdown table, by bits; errors that no Hessian judged have no columns."""
    kinds = ["relative squared error", "weighted error", "output error"]
    judged = len(kinds) if rows[0].output_error is not None else 1
    errors = [f"{kind} | excess" for kind in kinds[:judged]]
    print(f"\n{title}\n")
    print("|", " | ".join(("codec | bits", *errors, "entropy-coded bits | coding M/s a core | decoding M/s a core |")))
    print("|" + "---|" * (5 + 2 * judged))
    for row in sorted(rows, key=lambda row: row.bits):
        known = [error for error in (row.error, row.weighted_error, row.output_error) if error is not None]
        print(
            f"| {row.name} | {row.bits:.3f} | {' | '.join(f'{error:.3e} | {row.excess(error):.2f}' for error in known)}"
            f" | {row.entropy_bits:.3f} | {row.encode_rate / 1e6:.3g} | {row.decode_rate / 1e6:.3g} |",
            flush=True,
        )


def main() -> None:
    """Measure every source."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("tests/data/books-llama-6m"))
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--blocks", type=int, default=2, help="layers of the model")
    parser.add_argument("--match", default="", help="regular expression: which of their matrices")
    parser.add_argument("--rows", type=int, default=256, help="of the random matrices, 1024 columns")
    parser.add_argument("--only", nargs="*", help="codecs and types")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--skip-search", action="store_true", help="no rates of SeedLM's searches")
    parser.add_argument("--skip-tables", action="store_true", help="nothing but these; and with importances of a text")
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    shape = (options.rows, 1024)
    normal = generator.standard_normal(shape, dtype=np.float32)
    tailed = generator.standard_t(4, shape).astype(np.float32)
    real = real_samples(options.model, options.calibration, options.blocks, options.match)
    sources = {
        f"Gaussian, {shape[0]} × {shape[1]}": [Sample(normal)],
        f"Student t with 4 degrees of freedom, {shape[0]} × {shape[1]}": [Sample(tailed)],
        f"{options.model.name}, layers 0 to {options.blocks - 1}": real,
    }
    if not options.skip_search:
        for rows in (256, 2048):
            weight = generator.standard_normal((rows, 1024), dtype=np.float32)
            print_search_rates(f"Gaussian, {rows} × 1024", [weight])
        every = all_matrices(options.model)
        print_search_rates(f"{options.model.name}, all {len(every)} matrices", every)
    if options.skip_tables:
        if options.calibration is not None:
            known = [sample.statistics.column_weights(sample.weight.shape[1]) for sample in real]
            print_weighted_rates(options.model.name, [sample.weight for sample in real], known)
        return
    tables = {}
    for title, samples in sources.items():
        names = options.only or (*CODECS, *TYPES)
        if samples[0].judge is not None:
            names = (*names, *(name + BLIND for name in names if "vptq" in name or name.startswith("seedlm")))
            names = (*names, *(name + DIAGONAL for name in names if name.startswith("vptq") and BLIND not in name))
        tables[title] = [measure(name, samples) for name in names]
        print_table(title, tables[title])
    if options.plot:
        write_plot(
            options.plot, {title: [(row.name, row.bits, row.error) for row in rows] for title, rows in tables.items()}
        )


if __name__ == "__main__":
    from figure_file import run_with_figure

    run_with_figure(main)
