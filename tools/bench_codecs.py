"""The codecs' yardstick: every codec and every ggml type on Gaussian, heavy-tailed and real matrices.

    python tools/bench_codecs.py [--model MODEL] [--calibration TEXT] [--blocks 2] [--plot out.svg] [--skip-search]

For each: bits a weight (side data included), relative squared error, excess bits over the Gaussian rate-distortion
bound (R + ½·log2 of the error), bits after an order-0 entropy coder of each byte plane, coding and decoding speed.
With --calibration, real matrices also get the error of the layer's output, tr(E·H·Eᵀ) / tr(W·H·Wᵀ), and the codecs
see the Hessians. Speeds are weights a second of processor time, so of one core, and other programs hardly matter;
SeedLM's is printed beside the float32 matrix-product rate of the same minute, measured alike.
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
from edgepack.export.checkpoint import open_checkpoint
from edgepack.quant.codecs.codec import NO_STATISTICS, Statistics
from edgepack.quant.codecs.decode import decode
from edgepack.quant.codecs.ggml import dequantize_rows, needs_importance, quantize_rows
from edgepack.quant.codecs.targets import find_edge_target

from edgepack.gguf.types import GGMLType
from edgepack.model import read_tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

CODECS = ("ternary", "ternary:fit=least-squares", "vptq2", "vptq3", "vptq4", "seedlm3", "seedlm4",
          "seedlm4:search=pruned", "nf4", "bezier4", "bezier", "trajectory", "trajectory:points=1600,classes=1",
          "trajectory:points=1600,classes=3")  # fmt: skip
TYPES = ("TQ1_0", "TQ2_0", "Q2_K", "IQ2_XS", "IQ3_S", "Q3_K", "IQ4_XS", "IQ4_NL", "Q4_0", "Q4_K", "Q5_0", "Q5_K",
         "Q6_K", "Q8_0")  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line of the table, over all matrices of a source."""

    name: str
    bits: float
    error: float
    output_error: float | None
    entropy_bits: float
    encode_rate: float
    decode_rate: float

    @property
    def excess(self) -> float:
        """Bits above the Gaussian rate-distortion bound at this error."""
        return self.bits + 0.5 * float(np.log2(max(self.error, 1e-30)))


@dataclass(frozen=True)
class Sample:
    """A matrix and what is known of its inputs."""

    weight: NDArray[np.float32]
    statistics: Statistics


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
    (codec,) = find_edge_target(name).codecs
    started = time.process_time()
    encoded = codec.encode(sample.weight, sample.statistics)
    coded = time.process_time()
    decoded = decode(encoded, threads=1)
    done = time.process_time()
    planes = [
        np.ascontiguousarray(array).view(np.uint8).reshape(len(array), -1) for array in encoded.components.values()
    ]
    split = [plane[:, byte] for plane in planes for byte in range(plane.shape[1])]
    return Outcome(8 * encoded.nbytes, split, decoded, coded - started, done - coded)


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
    pairs = list(zip(samples, outcomes, strict=True))
    # Each matrix has a variance of its own, so logarithms of errors are averaged: they are what bits compare with.
    logs = [np.log2(max(float(((s.weight - o.decoded) ** 2).mean() / (s.weight**2).mean()), 1e-30)) for s, o in pairs]
    sizes = [sample.weight.size for sample in samples]
    output = [output_error(sample, outcome.decoded) for sample, outcome in pairs]
    known = [value for value in output if value is not None]
    return Row(
        name,
        sum(outcome.stored_bits for outcome in outcomes) / count,
        2 ** float(np.average(logs, weights=sizes)),
        2 ** float(np.average(np.log2(known), weights=sizes)) if len(known) == len(samples) else None,
        sum(entropy_bits(plane) for outcome in outcomes for plane in outcome.planes) / count,
        count / sum(outcome.encode_seconds for outcome in outcomes),
        count / sum(outcome.decode_seconds for outcome in outcomes),
    )


def output_error(sample: Sample, decoded: NDArray[np.float32]) -> float | None:
    """tr(E·H·Eᵀ) / tr(W·H·Wᵀ), or None without a Hessian."""
    hessian = sample.statistics.hessian
    if hessian is None:
        return None
    error = (sample.weight - decoded).astype(np.float64)
    weight = sample.weight.astype(np.float64)
    return float(((error @ hessian) * error).sum() / ((weight @ hessian) * weight).sum())


def real_samples(model: Path, calibration: Path | None, blocks: int, match: str) -> list[Sample]:
    """The matrices of the first `blocks` layers whose names match, with Hessians where there is a text."""
    checkpoint = open_checkpoint(model)
    known = {}
    if calibration is not None:
        from edgepack.quant.calibration.collect import collect
        from edgepack.quant.calibration.text import text_sequences

        tokens = text_sequences(checkpoint, calibration.read_text(), sequences=32)
        known = collect(checkpoint, tokens, with_hessian=True).statistics
    names = [name for name, spec in checkpoint.tensors.specs.items() if len(spec.shape) == 2]
    wanted = re.compile(rf"\.layers\.({'|'.join(map(str, range(blocks)))})\..*({match})")
    chosen = [name for name in names if wanted.search(name)]
    samples = []
    for name in chosen:
        moments = known.get(name)
        statistics = NO_STATISTICS if moments is None else Statistics(moments.mean_square, moments.hessian)
        samples.append(Sample(read_tensor(checkpoint.tensors, name), statistics))
    return samples


def matrix_product_rate() -> float:
    """Multiplications and additions a second of one core in a large float32 product in torch."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    a = torch.randn(2048, 2048)
    a @ a
    started = time.process_time()
    for _ in range(3):
        a @ a
    rate = 3 * 2 * 2048**3 / (time.process_time() - started)
    torch.set_num_threads(threads)
    return rate


def print_search_rates() -> None:
    """SeedLM's searches beside the matrix-product rate, interleaved: rate, search, rate, search, rate."""
    sample = Sample(np.random.default_rng(1).standard_normal((256, 1024), dtype=np.float32), NO_STATISTICS)
    for name, length in (("seedlm4", 8), ("seedlm3", 12)):
        run_codec(f"{name}:search=pruned", sample)  # tables are made once a process
        rates = [matrix_product_rate()]
        exhaustive = run_codec(name, sample)
        rates.append(matrix_product_rate())
        pruned = run_codec(f"{name}:search=pruned", sample)
        rates.append(matrix_product_rate())
        operations = sample.weight.size / length * 65535 * length * (length + 1)
        errors = [float(((sample.weight - o.decoded) ** 2).sum()) ** 0.5 for o in (pruned, exhaustive)]
        print(
            f"{name}: exhaustive {sample.weight.size / exhaustive.encode_seconds:,.0f} weights/s a core,"
            f" {operations / exhaustive.encode_seconds / np.mean(rates):.2f} of the float32 matrix-product rate"
            f" ({np.mean(rates) / 1e9:.0f} GFLOP/s); pruned {exhaustive.encode_seconds / pruned.encode_seconds:.1f}"
            f" times as fast with {100 * (errors[0] / errors[1] - 1):.2f} % more error (‖W - Ŵ‖)"
        )


def print_table(title: str, rows: Sequence[Row]) -> None:
    """A Markdown table, by bits."""
    print(f"\n{title}\n")
    print("| codec | bits | relative squared error | excess | output error | excess of output | entropy-coded bits "
          "| coding M/s a core | decoding M/s a core |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: row.bits):
        output, excess = "", ""
        if row.output_error is not None:
            output, excess = f"{row.output_error:.3e}", f"{row.bits + 0.5 * np.log2(row.output_error):.2f}"
        print(
            f"| {row.name} | {row.bits:.3f} | {row.error:.3e} | {row.excess:.2f} | {output} | {excess} "
            f"| {row.entropy_bits:.3f} | {row.encode_rate / 1e6:.3g} | {row.decode_rate / 1e6:.3g} |"
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
    parser.add_argument("--skip-search", action="store_true")
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    shape = (options.rows, 1024)
    normal = generator.standard_normal(shape, dtype=np.float32)
    tailed = generator.standard_t(4, shape).astype(np.float32)
    sources = {
        f"Gaussian, {shape[0]} × {shape[1]}": [Sample(normal, NO_STATISTICS)],
        f"Student t with 4 degrees of freedom, {shape[0]} × {shape[1]}": [Sample(tailed, NO_STATISTICS)],
        f"{options.model.name}, layers 0 to {options.blocks - 1}": real_samples(
            options.model, options.calibration, options.blocks, options.match
        ),
    }
    if not options.skip_search:
        print_search_rates()
    tables = {}
    for title, samples in sources.items():
        tables[title] = [measure(name, samples) for name in options.only or (*CODECS, *TYPES)]
        print_table(title, tables[title])
    if options.plot:
        write_plot(
            options.plot, {title: [(row.name, row.bits, row.error) for row in rows] for title, rows in tables.items()}
        )


if __name__ == "__main__":
    main()
