"""The same digests from one process, 1, 2 and 4 workers, and from 4 while workers are killed, for every kind of work.

    python tools/cluster_digests.py [--only gptq,wire] [--workers 1,2,4] [--width 256] [--kills 3] [--figure NAME]

The model is a Llama of two layers with random weights that do not repeat, the text lies in the repository. Exit code 1
where a digest differs.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from attack_cluster import Killer
from bench_wire import OWN_WORDS, write_random
from figure_file import run_with_figure
from local_ray import LocalRay, local_ray
from synthetic_checkpoint import LlamaShape

import edgepack
from edgepack.pipeline.cluster.ray_connection import connected


def shape_of(width: int) -> LlamaShape:
    """Two layers of a width, a multiple of 128."""
    return LlamaShape(width, 2, 2 * width, width // 64, width // 128, 4096)


GPTQ_RECIPE = f"""
[calibration]
text = "{OWN_WORDS}"
sequences = 8
length = 64

[[pass]]
name = "gptq"
"""
_TEXT = {"calibration": OWN_WORDS, "sequences": 8, "length": 64}


@dataclass(frozen=True)
class Case:
    """A kind of work.

    Attributes:
        name: as `--only` has it.
        target: of the export.
        options: its others.
    """

    name: str
    target: str
    options: dict[str, Any] = field(default_factory=dict)


CASES = (
    Case("q4km", "gguf-q4km"),
    Case("importance", "gguf-q4km", {**_TEXT, "refine": False}),
    Case("refined", "gguf-q4km", _TEXT),
    Case("gptq", "gguf-q4km", {"recipe": "gptq.toml"}),
    Case("wire", "wire", {**_TEXT, "bits": 5.0, "host_type": "q8"}),
    Case("vptq3", "edge-vptq3", _TEXT),
)


def made(case: Case, model: Path, folder: Path, ray: LocalRay | None) -> tuple[str, int]:
    """The file's digest, and how often a piece of work was done again."""
    options = {key: folder / value if key == "recipe" else value for key, value in case.options.items()}
    output = folder / ("m.edgepack" if case.target == "wire" else "m.gguf")
    cluster = None if ray is None else ray.address
    result = edgepack.export(model, case.target, output=output, cluster=cluster, threads=1, force=True, **options)
    again: Any = 0 if result.cluster is None else result.cluster["done_again"]
    return hashlib.sha256(result.output.read_bytes()).hexdigest(), again


def under_losses(case: Case, model: Path, folder: Path, ray: LocalRay, kills: int) -> tuple[str, str]:
    """The file's digest where workers were killed while it was made, and a cell that says so."""
    killer = Killer(ray, kills, seed=len(case.name))
    try:
        found, again = made(case, model, folder, ray)
    finally:
        killer.stop()
    return found, f"{found[:12]} ({killer.kills} killed, {again} pieces again)"


def table(
    cases: list[Case], model: Path, folder: Path, counts: list[int], kills: int
) -> tuple[dict[str, list[str]], bool]:  # fmt: skip
    """Work → cells, and whether all digests of a work are one; the cluster grows, and its workers stay."""
    expected = {case.name: made(case, model, folder, None)[0] for case in cases}
    cells = {case.name: [case.target, expected[case.name][:12]] for case in cases}
    same = True
    with local_ray(counts[0]) as ray, connected(ray.address):
        for workers in counts:
            while len(ray.nodes) < workers:
                ray.add()
            for case in cases:
                found, _ = made(case, model, folder, ray)
                cells[case.name].append(found[:12])
                same &= found == expected[case.name]
                print(f"{case.name}, {workers}: {found[:12]}", file=sys.stderr)
        for case in cases:
            found, told = under_losses(case, model, folder, ray, kills)
            cells[case.name].append(told)
            same &= found == expected[case.name]
            print(f"{case.name}: {told}", file=sys.stderr)
    return cells, same


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(case.name for case in CASES))
    parser.add_argument("--kills", type=int, default=3, help="workers, an export")
    parser.add_argument("--workers", default="1,2,4")
    parser.add_argument("--width", type=int, default=256)
    given = parser.parse_args()
    counts = [int(count) for count in given.workers.split(",")]
    folder = Path(tempfile.mkdtemp(prefix="ray-digests-"))
    try:
        model = write_random(folder / "model", shape_of(given.width))
        (folder / "gptq.toml").write_text(GPTQ_RECIPE)
        cases = [case for case in CASES if case.name in given.only.split(",")]
        cells, same = table(cases, model, folder, counts, given.kills)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    told = [f"{count} worker{'s' if count > 1 else ''}" for count in counts]
    headings = ["work", "target", "one process", *told, f"{told[-1]}, some killed"]
    print(f"| {' | '.join(headings)} |")
    print("|---" * len(headings) + "|")
    for name, found in cells.items():
        print(f"| {name} | {' | '.join(found)} |")
    return 0 if same else 1


if __name__ == "__main__":
    run_with_figure(main)
