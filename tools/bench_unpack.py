#!/usr/bin/env python3
"""What restoring costs a core, beside what it cannot do without: hashing twice and writing.

    python tools/bench_unpack.py                          the wire's integers on paths, and 600 M weights of Q5_K
    python tools/bench_unpack.py --gguf FILE.gguf …       these files only
    python tools/bench_unpack.py --run [FILE.edgepack]    first token and peak memory: out of the archive, and installed

One thread, processor time of this process (the machine may be shared), the best of some turns. The limit is SHA-256 of
the stored bytes and of the restored ones, and writing them, with nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from archive_models import random_model
from tiny_models import Shape, write_random

from edgepack.gguf import keys
from edgepack.gguf.reader import read_header
from edgepack.gguf.types import GGMLType, TensorInfo, string, u32
from edgepack.gguf.writer import GGUFWriter
from edgepack.packaging.archive import open_archive
from edgepack.packaging.coding.trellis_symbols import starts
from edgepack.packaging.pack import pack_archive
from edgepack.packaging.restore.unpack import unpack_archive
from edgepack.quantities import format_size
from edgepack.trellis import TrellisCode, trellis_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

ROWS, COLUMNS, STATES = 4096, 2048, 8
# Runs the command line and prints its own peak memory (ru_maxrss would be at least that of the process that forked).
_CHILD = r"""
import re, sys
from pathlib import Path
from edgepack.cli import execute
code = execute(sys.argv[1:])
print(1024 * int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]), file=sys.stderr)
sys.exit(code)
"""


def integers_on_paths(code: TrellisCode, random: np.random.Generator) -> NDArray[np.int8]:
    """A matrix [ROWS, COLUMNS] of about 2.4 bits a weight that follows the code, rows and columns of unlike spread."""
    spread = np.exp(random.normal(0, 0.25, (ROWS, 1)) + random.normal(0, 0.25, COLUMNS)) * 1.2
    indices = (random.standard_normal((ROWS, COLUMNS)) * spread).round().clip(-60, 60).astype(np.int64)
    of_state, taps, result = np.array(code.quantisers), np.array(code.taps), np.empty((ROWS, COLUMNS), np.int8)
    for row in range(ROWS):
        if row % code.rows == 0:
            state = starts(code, COLUMNS).astype(np.int64)
        result[row] = 2 * indices[row] + of_state[state]
        state = (2 * state + ((indices[row] & 1) ^ taps[state])) % code.states
    return result


def write_wire_model(path: Path, matrices: int) -> Path:
    """A GGUF as the wire target makes them: Q8_0 whose integers follow paths."""
    kind, random = GGMLType.Q8_0, np.random.default_rng(0)
    code = trellis_of(STATES, kind.row_bytes(COLUMNS))
    assert code is not None
    infos = [TensorInfo(f"blk.{number}.ffn_up.weight", (ROWS, COLUMNS), kind) for number in range(matrices)]
    metadata = {"general.architecture": string("llama"), keys.WIRE_HOST: string("q8_0"), keys.WIRE_TRELLIS: u32(STATES)}
    with path.open("wb") as stream:
        writer = GGUFWriter(stream, metadata, infos)
        writer.write_header()
        for info in infos:
            blocks = np.empty((ROWS, COLUMNS // 32, 34), np.uint8)
            blocks[:, :, :2] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
            blocks[:, :, 2:] = integers_on_paths(code, random).view(np.uint8).reshape(ROWS, -1, 32)
            writer.write(info.name, blocks.tobytes())
        writer.close()
    return path


def seconds(work: Callable[[], object], turns: int) -> float:
    """Processor seconds of the best turn."""
    found = []
    for _ in range(turns):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return min(found)


def _limit(archive: Path, gguf: Path, out: Path) -> None:
    """The archive read and hashed, as many bytes as the GGUF has hashed and written, a MiB at a time."""
    buffer, whole = bytearray(1 << 20), hashlib.sha256()
    with archive.open("rb", buffering=0) as stored:
        while count := stored.readinto(buffer):
            hashlib.sha256(memoryview(buffer)[:count]).digest()
    with out.open("wb") as target:
        for _ in range(gguf.stat().st_size >> 20):
            whole.update(buffer)
            target.write(buffer)


def measure(gguf: Path, folder: Path, turns: int) -> None:
    """Print what packing and unpacking a file cost, as a row."""
    weights = sum(tensor.rows * tensor.shape[-1] for tensor in read_header(gguf).tensors)
    size, archive, out = gguf.stat().st_size, folder / "a.edgepack", folder / "out.gguf"

    def unpack() -> None:
        out.unlink(missing_ok=True)
        unpack_archive(archive, out, threads=1)

    pack = seconds(lambda: pack_archive(gguf, archive, threads=1), 1)
    restore, limit = seconds(unpack, turns), seconds(lambda: _limit(archive, gguf, folder / "limit"), turns)
    cells = [
        gguf.stem, format_size(size), f"{8 * archive.stat().st_size / weights:.2f}", f"{size / pack / 1e6:.0f} MB/s",
        f"{size / restore / 1e6:.0f} MB/s", f"{weights / restore / 1e6:.0f} M", f"{size / limit / 1e6:.0f} MB/s",
        f"{restore / limit:.2f}",
    ]  # fmt: skip
    print("| " + " | ".join(cells) + " |", flush=True)


def measure_all(files: Sequence[Path], folder: Path, turns: int, matrices: int) -> None:
    """Print the table of costs; without files, of a wire model and of 600 M weights of Q5_K."""
    heads = ["file", "size", "bits a weight, packed", "pack", "unpack + verify", "weights a second",
             "hash twice and write", "unpack / limit"]  # fmt: skip
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for path in files:
        measure(path, folder, turns)
    if not files:
        measure(write_wire_model(folder / "wire.gguf", matrices), folder, turns)
        measure(random_model(folder / "Q5_K.gguf", 600_000_000, GGMLType.Q5_K), folder, turns)


def _runs(archive: Path, folder: Path) -> Iterator[tuple[str, dict[str, float], int, float]]:
    environment = os.environ | {"EDGEPACK_CACHE": str(folder / "cache")}
    options = ["--prompt", "The", "--max-tokens", "1", "--temperature", "0", "--ctx", "512", "--json"]
    steps = {"out of the archive, each start": "always", "installing, first start": "never",
             "installed, each later start": "never"}  # fmt: skip
    for name, wish in steps.items():
        started = time.perf_counter()
        command = [sys.executable, "-c", _CHILD, "run", str(archive), "--from-archive", wish, *options]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        took = time.perf_counter() - started
        yield name, json.loads(done.stdout), int(done.stderr.split()[-1]), took


def measure_run(archive: Path, folder: Path) -> None:
    """Print how soon the first token comes and what memory it takes; every answer must be the same."""
    with open_archive(archive) as opened:
        size = format_size(opened.main.bytes)
    heads = [f"a GGUF of {size}", "load and first token", "whole process", "peak memory", "disk beside the archive"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    answers = set()
    for name, told, peak, took in _runs(archive, folder):
        disk = sum(path.stat().st_size for path in (folder / "cache").rglob("*.gguf"))
        first = told["load_seconds"] + told["first_token_seconds"]
        answers.add(told["text"])
        cells = [name, f"{first:.1f} s", f"{took:.1f} s", format_size(peak), format_size(disk) if disk else "none"]
        print("| " + " | ".join(cells) + " |", flush=True)
    assert len(answers) == 1, answers


def _packed_llama(folder: Path) -> Path:
    shape = Shape(layers=10, width=2048, heads=16, head_width=128, feed_forward=8192, type=GGMLType.Q5_K)
    return pack_archive(write_random(folder / "llama.gguf", shape), folder / "llama.edgepack").output


def main() -> None:
    """Read the options and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, nargs="+", default=[])
    parser.add_argument("--run", metavar="FILE.edgepack", nargs="?", const="", help="a random Llama without a file")
    parser.add_argument("--matrices", type=int, default=5, help=f"of {ROWS} × {COLUMNS}; 5")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.run is not None:
            measure_run(Path(options.run) if options.run else _packed_llama(folder), folder)
        else:
            measure_all(options.gguf, folder, options.turns, options.matrices)


if __name__ == "__main__":
    from figure_file import run_with_figure

    run_with_figure(main)
