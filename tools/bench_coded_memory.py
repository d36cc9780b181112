"""Peak memory of coding one matrix for an edge target, beside the matrix in float32; rows are made on demand.

    python tools/bench_coded_memory.py [--rows 131072] [--columns 4096] [--targets nf4 ternary …]

Each target is coded in a process of its own, as `edgepack export --target edge-…` codes one tensor; what numpy, torch
and edgepack take before there is any weight is printed too.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from edgepack.quantities import format_duration, format_size


@dataclass(frozen=True)
class MadeRows:
    """Normal numbers, the same for the same row; a `Rows` and so a checkpoint's tensor."""

    shape: tuple[int, int]
    dtype: str = "bf16"

    def read(self, start: int, stop: int) -> np.ndarray:
        """As `Rows.read`: rows in groups of 64 from one generator each."""
        groups = range(start // 64, -(-stop // 64))
        made = [np.random.default_rng(group).standard_normal((64, self.shape[1]), dtype=np.float32) for group in groups]
        first = start - groups[0] * 64
        return np.concatenate(made)[first : first + stop - start]


def peak() -> int:
    """Bytes of the peak resident size of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def code(target: str, shape: tuple[int, int]) -> tuple[int, int, float]:
    """(peak before, peak after, processor seconds) of coding one matrix."""
    import torch  # noqa: F401 - so that it counts before, not after

    from edgepack.export.coded.file import VariantWriter
    from edgepack.export.coded.plan import PlannedMatrix, VariantPlan, settle_plan
    from edgepack.export.coded.write import CodingRun
    from edgepack.quant.codecs.targets import find_edge_target

    before, started = peak(), time.process_time()
    chosen = find_edge_target(target)
    plan = settle_plan(VariantPlan(chosen, {}, (PlannedMatrix("token_embd.weight", MadeRows(shape), chosen),)), {})
    run = CodingRun(plan, {}, False, 1, [])
    with tempfile.TemporaryFile() as stream:
        run.add(VariantWriter(stream, plan.layout), plan.tensors[0], run.code(plan.tensors[0]))
    return before, peak(), time.process_time() - started


def main() -> None:
    """Measure every target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=131072)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--targets", nargs="+", default=["nf4"])
    options = parser.parse_args()
    shape = (options.rows, options.columns)
    print(f"{shape[0]} × {shape[1]}: {format_size(4 * shape[0] * shape[1])} in float32")
    print("| target | before | peak | bytes a weight | coding |\n|---|---|---|---|---|")
    for target in options.targets:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            before, after, seconds = pool.submit(code, target, shape).result()
        share = (after - before) / (shape[0] * shape[1])
        print(
            f"| {target} | {format_size(before)} | {format_size(after)} | {share:.2f} | {format_duration(seconds)} |",
            flush=True,
        )


if __name__ == "__main__":
    from figure_file import run_with_figure

    run_with_figure(main)
