#!/usr/bin/env python3
"""What restoring costs a core, beside what it cannot do without: hashing twice and writing.

    python tools/bench_unpack.py                          wire: integers on paths in Q8_0; 40 M weights
    python tools/bench_unpack.py --gguf FILE.gguf         any file
    python tools/bench_unpack.py --run FILE.edgepack      first token and peak memory: out of the archive, and installed

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

from edgepack.gguf import keys
from edgepack.gguf.reader import read_header
from edgepack.gguf.types import GGMLType, TensorInfo, string, u32
from edgepack.gguf.writer import GGUFWriter
from edgepack.packaging.coding.trellis_symbols import starts
from edgepack.packaging.pack import pack_archive
from edgepack.packaging.restore.unpack import unpack_archive
from edgepack.quantities import format_size
from edgepack.trellis import TrellisCode, trellis_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
    """Print what packing and unpacking a file cost."""
    weights = sum(tensor.rows * tensor.shape[-1] for tensor in read_header(gguf).tensors)
    size, archive, out = gguf.stat().st_size, folder / "a.edgepack", folder / "out.gguf"

    def unpack() -> None:
        out.unlink(missing_ok=True)
        unpack_archive(archive, out, threads=1)

    pack = seconds(lambda: pack_archive(gguf, archive, threads=1), 1)
    restore, limit = seconds(unpack, turns), seconds(lambda: _limit(archive, gguf, folder / "limit"), turns)
    share = 8 * archive.stat().st_size / weights
    print(f"{gguf.name}: {format_size(size)}, {weights / 1e6:.0f} M weights, {share:.3f} bits a weight in the archive")
    rows = {"pack": pack, "unpack + verify": restore, "hash twice and write": limit}
    for name, took in rows.items():
        print(f"  {name:22} {weights / took / 1e6:6.0f} M weights/s a core {size / took / 1e6:6.0f} MB/s a core")
    print(f"  unpack + verify is {restore / limit:.2f} of the limit's processor time", flush=True)


def _runs(archive: Path, folder: Path) -> Iterator[tuple[str, dict[str, float], int, float]]:
    environment = os.environ | {"EDGEPACK_CACHE": str(folder / "cache")}
    options = ["--prompt", "The", "--max-tokens", "1", "--temperature", "0", "--ctx", "512", "--json"]
    steps = {"out of the archive": "always", "installing": "never", "installed": "never"}
    for name, wish in steps.items():
        started = time.perf_counter()
        command = [sys.executable, "-c", _CHILD, "run", str(archive), "--from-archive", wish, *options]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        took = time.perf_counter() - started
        yield name, json.loads(done.stdout), int(done.stderr.split()[-1]), took


def measure_run(archive: Path, folder: Path) -> None:
    """Print how soon the first token comes and what memory it takes."""
    print(f"{archive.name}: {format_size(archive.stat().st_size)}")
    for name, told, peak, took in _runs(archive, folder):
        disk = sum(path.stat().st_size for path in folder.rglob("*.gguf"))
        first = told["load_seconds"] + told["first_token_seconds"]
        print(
            f"  {name:20} process {took:5.2f} s, load and first token {first:5.2f} s, peak {format_size(peak):>8}, "
            f"disk beside the archive {format_size(disk):>8}, says {told['text']!r}", flush=True
        )  # fmt: skip


def main() -> None:
    """Read the options and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--run", type=Path, metavar="FILE.edgepack")
    parser.add_argument("--matrices", type=int, default=5, help=f"of {ROWS} × {COLUMNS}; 5")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.run:
            measure_run(options.run, folder)
            return
        path = options.gguf or write_wire_model(folder / "wire.gguf", options.matrices)
        measure(path, folder, options.turns)


if __name__ == "__main__":
    main()
