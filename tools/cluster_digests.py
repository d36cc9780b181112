"""The same digests from one process, 1, 2 and 4 workers, and from 4 while workers are killed, for every kind of work.

    python tools/cluster_digests.py [--only gptq,wire] [--workers 1,2,4] [--width 256] [--kills 3] [--figure NAME]

The models are Llamas of two layers with random weights that do not repeat, the text lies in the repository. Exit code 1
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
SMOOTH_RECIPE = GPTQ_RECIPE.replace('"gptq"', '"smooth"') + "steps = 20\ntokens = 64\n"
RECIPES = {"gptq.toml": GPTQ_RECIPE, "smooth.toml": SMOOTH_RECIPE}
_TEXT = {"calibration": OWN_WORDS, "sequences": 8, "length": 64}
PLAIN, UNEVEN = "model", "uneven"
_LARGE, _TIMES = (1, 9, 30), 30  # channels, and how much larger than the others they are, so that scales help


@dataclass(frozen=True)
class Case:
    """A kind of work.

    Attributes:
        name: as `--only` has it.
        target: of the export.
        options: its others.
        model: which of `write_models`.
    """

    name: str
    target: str
    options: dict[str, Any] = field(default_factory=dict)
    model: str = PLAIN


CASES = (
    Case("q4km", "gguf-q4km"),
    Case("importance", "gguf-q4km", {**_TEXT, "refine": False}),
    Case("refined", "gguf-q4km", _TEXT),
    Case("smooth", "gguf-q4km", {"recipe": "smooth.toml"}, UNEVEN),
    Case("gptq", "gguf-q4km", {"recipe": "gptq.toml"}),
    Case("wire", "wire", {**_TEXT, "bits": 5.0, "host_type": "q8"}),
    Case("vptq3", "edge-vptq3", _TEXT),
)


def write_models(folder: Path, shape: LlamaShape) -> None:
    """The model, and one whose channels are of very different sizes."""
    from safetensors.torch import load_file, save_file

    plain = write_random(folder / PLAIN, shape)
    shutil.copytree(plain, folder / UNEVEN)
    tensors = load_file(plain / "model.safetensors")
    tensors["model.embed_tokens.weight"][:, list(_LARGE)] *= _TIMES
    save_file(tensors, folder / UNEVEN / "model.safetensors", {"format": "pt"})


def made(case: Case, folder: Path, ray: LocalRay | None) -> tuple[str, int]:
    """The file's digest, and how often a piece of work was done again."""
    options = {key: folder / value if key == "recipe" else value for key, value in case.options.items()}
    output = folder / ("m.edgepack" if case.target == "wire" else "m.gguf")
    cluster = None if ray is None else ray.address
    options |= {"output": output, "cluster": cluster, "threads": 1, "force": True}
    result = edgepack.export(folder / case.model, case.target, **options)
    again: Any = 0 if result.cluster is None else result.cluster["done_again"]
    return hashlib.sha256(result.output.read_bytes()).hexdigest(), again


def under_losses(case: Case, folder: Path, ray: LocalRay, kills: int) -> tuple[str, str]:
    """The file's digest where workers were killed while it was made, and a cell that says so."""
    killer = Killer(ray, kills, seed=len(case.name))
    try:
        found, again = made(case, folder, ray)
    finally:
        killer.stop()
    return found, f"{found[:12]} ({killer.kills} killed, {again} pieces again)"


def table(
    cases: list[Case], folder: Path, counts: list[int], kills: int
) -> tuple[dict[str, list[str]], bool]:  # fmt: skip
    """Work → cells, and whether all digests of a work are one; the cluster grows, and its workers stay."""
    expected = {case.name: made(case, folder, None)[0] for case in cases}
    cells = {case.name: [case.target, expected[case.name][:12]] for case in cases}
    same = True
    with local_ray(counts[0]) as ray, connected(ray.address):
        for workers in counts:
            while len(ray.nodes) < workers:
                ray.add()
            for case in cases:
                found, _ = made(case, folder, ray)
                cells[case.name].append(found[:12])
                same &= found == expected[case.name]
                print(f"{case.name}, {workers}: {found[:12]}", file=sys.stderr)
        for case in cases:
            found, told = under_losses(case, folder, ray, kills)
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
        write_models(folder, shape_of(given.width))
        for name, text in RECIPES.items():
            (folder / name).write_text(text, encoding="utf-8")
        cases = [case for case in CASES if case.name in given.only.split(",")]
        cells, same = table(cases, folder, counts, given.kills)
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
