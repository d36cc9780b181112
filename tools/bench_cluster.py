"""Runs 1, 2 and 4 workers of one thread on a synthetic model: prediction beside truth, and the efficiency of more.

    python tools/bench_cluster.py [--size 300m] [--target gguf-q4km] [--workers 1,2,4] [--figure NAME]

Every node is a Ray node of one processor on this machine, and its worker one thread: it cannot take more than one core.
More workers than cores share them, and the prediction is told so. Efficiency is the time of one worker over that of n,
times n; time is counted from the first piece to the last, without Ray's start and a worker's first import.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from figure_file import run_with_figure
from local_ray import local_ray
from synthetic_checkpoint import LlamaShape, parse_parameters, write_llama

import edgepack
from edgepack.processors import default_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Watch:
    """Progress that remembers when the export's first and last bytes were made."""

    def __init__(self) -> None:
        self.began = self.ended = 0.0

    def __call__(self, label: str, total: int, unit: str = "B") -> Any:
        """As `edgepack.progress.Progress`."""
        return self._stretch(label)

    @contextmanager
    def _stretch(self, label: str) -> Iterator[Callable[[int], None]]:
        def advance(amount: int) -> None:
            if amount and label == "export":
                self.began = self.began or time.monotonic()
                self.ended = time.monotonic()

        yield advance


def run(model: Path, target: str, workers: int, folder: Path) -> tuple[float, float, str, int]:
    """Seconds predicted, seconds taken, the file's digest, and the peak memory of a worker."""
    with local_ray(workers) as ray:
        planned = edgepack.export(model, target, output=folder / "m.gguf", cluster=ray.address, dry_run=True)
        watch = Watch()
        made = edgepack.export(
            model, target, output=folder / "m.gguf", cluster=ray.address, progress=watch, force=True
        )  # fmt: skip
    assert planned.cluster is not None
    assert made.cluster is not None
    predicted: Any = planned.cluster["predicted"]
    nodes: Any = made.cluster["nodes"]
    cores = min(workers, default_threads())
    seconds = predicted["seconds"] * workers / cores
    digest = hashlib.sha256(made.output.read_bytes()).hexdigest()
    return seconds, watch.ended - watch.began, digest, max(node["peak_bytes"] for node in nodes)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="300m")
    parser.add_argument("--target", default="gguf-q4km")
    parser.add_argument("--workers", default="1,2,4")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ray-bench-"))
    try:
        model = folder / "model"
        write_llama(model, LlamaShape.of_size(parse_parameters(given.size)))
        alone = edgepack.export(model, given.target, output=folder / "alone.gguf")
        expected = hashlib.sha256(alone.output.read_bytes()).hexdigest()
        print("| workers | predicted | taken | efficiency | peak a worker | same bytes |")
        print("|---|---|---|---|---|---|")
        first = 0.0
        for workers in map(int, given.workers.split(",")):
            predicted, taken, digest, peak = run(model, given.target, workers, folder)
            first = first or taken * workers
            share = first / (taken * min(workers, default_threads()))
            print(
                f"| {workers} | {predicted:.1f} s | {taken:.1f} s | {share:.2f} | {peak / 1e6:.0f} MB |"
                f" {'yes' if digest == expected else 'NO'} |"
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    run_with_figure(main)
