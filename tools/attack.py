"""Attacks edgepack with everything that is known and prints counts, worst time and memory: SECURITY.md's table.

    python tools/attack.py                       all of it: a million flips, every bomb, every published file
    python tools/attack.py bombs models          some of it
    python tools/attack.py flips --flips 10000
    python tools/attack.py --figure NAME         keep the table as docs/figures/NAME.json

Kills, races and faults of disks are `attack_outputs.py`'s. Exit code 1 when anything got through.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from attack_bombs import beyond_start, cost_of, make_bombs
from attack_flips import archives, flip_bits, together
from attack_models import hostile_files
from figure_file import run_with_figure

LIMIT_SECONDS, LIMIT_BYTES = 0.05, 50e6  # beyond start-up
REFUSALS = (1, 2, 3, 4, 6, 7, 10, 13)
KINDS = ("flips", "bombs", "models")
Row = tuple[str, str, str, str, str]


def flips(folder: Path, count: int, processes: int) -> tuple[list[Row], int]:
    """Rows of the flipped bits, and how many got through; the work is shared by so many processes."""
    rows, through = [], 0
    files = archives(folder)
    with ProcessPoolExecutor(processes) as pool:
        share = count // len(files) // processes
        parts = {path: [pool.submit(flip_bits, path, share, 1000 * number + part) for part in range(processes)]
                 for number, path in enumerate(files)}  # fmt: skip
        done = {path: together([future.result() for future in futures]) for path, futures in parts.items()}
    for path, found in done.items():
        through += found.wrong + found.unforeseen
        told = f"{found.refused:,} refused, {found.same:,} without effect, {found.wrong} wrong accepted"
        size = path.stat().st_size
        rows.append((f"{found.count:,} flipped bits, {path.stem}", f"{size:,} B", told,
                     f"{1000 * found.worst_seconds:.0f} ms", ""))  # fmt: skip
    return rows, through


def bombs(folder: Path, times: int) -> tuple[list[Row], int]:
    """A row for each bomb, and how many cost more than they may."""
    rows, through = [], 0
    for bomb in make_bombs(folder):
        cost, seconds, peak = beyond_start(bomb, folder, times)
        good = cost.code in (*REFUSALS, *([0] if bomb.harmless else []))
        through += not good or seconds > LIMIT_SECONDS or peak > LIMIT_BYTES
        told = f"exit {cost.code}" if good else f"exit {cost.code}: {cost.told}"[:80]
        took = f"{max(0, 1000 * seconds):.0f} ms"
        rows.append((bomb.name, f"{bomb.bytes:,} B", told, took, f"{max(0, peak / 1e6):.1f} MB"))
    return rows, through


def models(folder: Path) -> tuple[list[Row], int]:
    """A row for each published kind of file, and how many files were not refused in a line."""
    found: dict[str, list[tuple[bool, float, int]]] = {}
    environment = {"EDGEPACK_CACHE": str(folder / "cache"), "EDGEPACK_TRUST": str(folder / "trust.json")}
    path, out = folder / "hostile.gguf", folder / "out.gguf"
    for file in hostile_files():
        path.write_bytes(file.content)
        cost = cost_of([{"FILE": str(path), "OUT": str(out)}.get(word, word) for word in file.command], environment)
        good = cost.code in REFUSALS and not out.exists() and cost.told.startswith("edgepack: error: ")
        found.setdefault(file.kind, []).append((good, cost.seconds, cost.peak_bytes))
    rows = []
    for kind, costs in found.items():
        refused = sum(good for good, _seconds, _peak in costs)
        rows.append((f"{kind}: {len(costs)} files", "", f"{refused} refused in a line",
                     f"{max(seconds for _good, seconds, _peak in costs):.2f} s in all",
                     f"{max(peak for _good, _seconds, peak in costs) / 1e6:.0f} MB in all"))  # fmt: skip
    return rows, sum(not good for costs in found.values() for good, _seconds, _peak in costs)


def main() -> int:
    """Attack and print; 1 when anything got through."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", default=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--flips", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int, default=1, help="that flip bits")
    parser.add_argument("--times", type=int, default=3, help="runs of each bomb, of which the cheapest counts")
    options = parser.parse_args()
    rows: list[Row] = []
    through = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in options.kinds:
            work = {
                "flips": lambda: flips(folder, options.flips, options.processes),
                "bombs": lambda: bombs(folder, options.times),
                "models": lambda: models(folder),
            }[kind]
            more, failed = work()
            rows += more
            through += failed
    print("| attack | size | came of it | worst time | memory |\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    if through:
        print(f"{through} got through", file=sys.stderr)
    return int(through > 0)


if __name__ == "__main__":
    run_with_figure(main)
