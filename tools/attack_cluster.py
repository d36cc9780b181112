"""Kills workers at random moments while a cluster exports, and compares every file with one machine's.

    python tools/attack_cluster.py [--model FOLDER] [--kills 20] [--nodes 2] [--target gguf-q4km] [--plain]

Files are refined (curvature in a relay over both nodes, predictions, rounding, encoding), with --plain only encoded:
then the workers of a small model wait most of the time, and are killed while they do. Exports are made one after the
other until so many workers were killed, one of those that work or wait for work at a time, at moments of its life that
are drawn from a seed. Exit code 1 where a file differs.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from bench_wire import OWN_WORDS
from figure_file import run_with_figure
from local_ray import LocalRay, local_ray

import edgepack
from edgepack.pipeline.cluster.ray_connection import connected

# Seconds of processor after which a worker is killed: it has imported all it needs after about two and a half. A stage
# of a relay takes several more, and a command ends where eight workers in turn die over one.
_LIFE = (1.0, 4.0)
_LONG_LIFE = (1.0, 20.0)
_LOOK_SECONDS = 0.1
BOOKS = Path(__file__).resolve().parent.parent / "tests/data/books-llama-6m"


class Killer:
    """Kills a worker now and then, from another thread: one that has had so much of a processor, drawn each time.

    By seconds of the clock a machine that is slow would only ever see workers die that have not begun.

    Attributes:
        kills: so far.
    """

    def __init__(self, ray: LocalRay, most: int, seed: int, life: tuple[float, float] = _LIFE) -> None:
        self._ray, self._most, self._random, self._life = ray, most, random.Random(seed), life
        self._ended = threading.Event()
        self.kills = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        moment = self._random.uniform(*self._life)
        while self.kills < self._most and not self._ended.wait(_LOOK_SECONDS):
            old = [number for number in self._ray.workers() if processor_seconds(number) >= moment]
            if old:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._random.choice(old), signal.SIGKILL)
                    self.kills += 1
                moment = self._random.uniform(*self._life)

    def stop(self) -> None:
        """Kill no more."""
        self._ended.set()
        self._thread.join()


def processor_seconds(number: int) -> float:
    """What a process has had of processors; 0 where it has gone."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def digest(path: Path) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def attack(given: argparse.Namespace, folder: Path) -> tuple[int, int, int, int]:
    """How many exports, kills, pieces done again, and files that differ."""
    wrong = exports = again = 0
    how: dict[str, Any] = {} if given.plain else {"calibration": OWN_WORDS, "sequences": 16, "length": 128}
    expected = digest(edgepack.export(given.model, given.target, output=folder / "alone.gguf", **how).output)
    with local_ray(given.nodes) as ray, connected(ray.address):
        edgepack.export(given.model, given.target, output=folder / "0.gguf", cluster=ray.address, dry_run=True)
        killer = Killer(ray, given.kills, given.seed, _LIFE if given.plain else _LONG_LIFE)
        while killer.kills < given.kills:
            output = folder / f"{exports}.gguf"
            made = edgepack.export(given.model, given.target, output=output, cluster=ray.address, **how)
            exports, same = exports + 1, digest(made.output) == expected
            wrong += not same
            again += made.cluster["done_again"] if made.cluster else 0  # type: ignore[operator]  # of JSON
            told = f"export {exports}: {'the same bytes' if same else 'OTHER BYTES'}, {killer.kills} kills so far"
            print(told, file=sys.stderr)
            made.output.unlink()
        killer.stop()
    return exports, killer.kills, again, wrong


def main() -> int:
    """Run, print a line an export and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BOOKS)
    parser.add_argument("--target", default="gguf-q4km")
    parser.add_argument("--plain", action="store_true", help="without a calibration text")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ray-attack-"))
    try:
        exports, kills, again, wrong = attack(given, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    work = given.target if given.plain else f"{given.target}, refined"
    print("| model | target | nodes | workers killed | exports | pieces done again | files that differ |")
    print("|---|---|---|---|---|---|---|")
    print(f"| {given.model.name} | {work} | {given.nodes} | {kills} | {exports} | {again} | {wrong} |")
    return 1 if wrong else 0


if __name__ == "__main__":
    run_with_figure(main)
