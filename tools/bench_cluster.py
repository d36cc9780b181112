"""Runs 1, 2 and 4 workers on a synthetic model: prediction beside truth, and the efficiency of more.

    python tools/bench_cluster.py [--size 1b] [--target gguf-q4km] [--workers 1,2,4] [--cores 0.25] [--figure NAME]

Every node is a Ray node of one processor on this machine whose workers, together, may take `--cores` of a core and no
more (a quota of the system's), so that four of them are as fast beside each other as one is alone, and what else runs
on the machine takes nothing of theirs as long as so much is free. Seconds are predicted by `--dry-run` from the
processor time of one piece of each type, and counted from the first piece to the last, without Ray's start and a
worker's first import. Efficiency is the time of one worker over that of n, times n; busy is the share of the workers'
time in which they had work.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import tempfile
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from figure_file import run_with_figure
from local_ray import LocalRay, local_ray
from synthetic_checkpoint import LlamaShape, parse_parameters, write_llama

import edgepack
from edgepack.pipeline.cluster.ray_connection import connected

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
            if label == "export":
                self.began = self.began or time.monotonic()
                self.ended = time.monotonic()

        yield advance


@dataclass(frozen=True)
class Run:
    """What one number of workers did.

    Attributes:
        predicted: seconds.
        taken: seconds.
        busy: share of the workers' time that was work.
        peak: most memory of a worker's process, in bytes.
        digest: of the file.
    """

    predicted: float
    taken: float
    busy: float
    peak: int
    digest: str


def run(model: Path, target: str, ray: LocalRay, cores: float, folder: Path) -> Run:
    """Export with the nodes that there are, after a dry run in which every worker imports what it needs."""
    output, workers = folder / "m.gguf", len(ray.nodes)
    planned = edgepack.export(model, target, output=output, cluster=ray.address, dry_run=True)
    watch = Watch()
    with ray.limited(cores) if cores < 1 else nullcontext():
        made = edgepack.export(model, target, output=output, cluster=ray.address, progress=watch, force=True)
    assert planned.cluster is not None
    assert made.cluster is not None
    predicted: Any = planned.cluster["predicted"]
    nodes: Any = made.cluster["nodes"]
    taken = watch.ended - watch.began
    worked = sum(node["seconds"] for node in nodes)
    return Run(
        predicted["seconds"] * predicted["processors"] / (workers * cores), taken, worked / (workers * taken),
        max(node["peak_bytes"] for node in nodes), hashlib.sha256(made.output.read_bytes()).hexdigest(),
    )  # fmt: skip


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1b")
    parser.add_argument("--target", default="gguf-q4km")
    parser.add_argument("--workers", default="1,2,4")
    parser.add_argument("--cores", type=float, default=0.25, help="of a core, a worker; 1 or more limits nothing")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ray-bench-"))
    try:
        model = folder / "model"
        write_llama(model, LlamaShape.of_size(parse_parameters(given.size)))
        alone = edgepack.export(model, given.target, output=folder / "alone.gguf")
        expected = hashlib.sha256(alone.output.read_bytes()).hexdigest()
        print("| workers | predicted | taken | efficiency | busy | peak a worker | same bytes |")
        print("|---|---|---|---|---|---|---|")
        first = 0.0
        with local_ray(1) as ray, connected(ray.address):
            for workers in map(int, given.workers.split(",")):
                while len(ray.nodes) < workers:
                    ray.add()
                found = run(model, given.target, ray, given.cores, folder)
                first = first or found.taken * workers
                share = first / (found.taken * workers)
                print(
                    f"| {workers} | {found.predicted:.1f} s | {found.taken:.1f} s | {share:.2f} | {found.busy:.2f} |"
                    f" {found.peak / 1e6:.0f} MB | {'yes' if found.digest == expected else 'NO'} |",
                    flush=True,
                )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    run_with_figure(main)
