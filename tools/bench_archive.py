"""The archive beside its peers, in one run: size against the entropy bound and zstd, wall and processor time as ratios.

    python tools/bench_archive.py                          the bundled model's types and a random model of 1 B
    python tools/bench_archive.py --parameters 300m --target q4_k
    python tools/bench_archive.py --gguf FILE.gguf …       these files only
    python tools/bench_archive.py --update --parameters 300m    patches for a changed chat template
    python tools/bench_archive.py --memory 5               peak memory for 5 GB, in a file and through pipes

Peers: `zstd -10 -T2 --long=27` and `xz -6 -T2` where the programs are installed, `zipnn` (for 16- and 32-bit
floats, which it is made for) where the package is. The bound is the order-0 entropy of every block field, each
weight a symbol of its own, over all tensors of a type; the GGUF's header counts with what the archive needs.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from archive_models import random_model, sparse_model
from field_entropy import entropy_bound

from edgepack.gguf.reader import read_header
from edgepack.gguf.types import GGMLType
from edgepack.packaging.archive import open_archive
from edgepack.quantities import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

BUNDLED = Path(__file__).resolve().parent.parent / "tests/data/books-llama-6m"
BUNDLED_TARGETS = ("q4_0", "q8_0", "q4_k_m", "q5_k_m", "q6_k", "bf16")
ZSTD = "zstd -10 -T2 --long=27"


class Took(NamedTuple):
    """Seconds: by the clock, and of processors (what a shared machine's clock does not tell)."""

    wall: float
    processor: float

    def __add__(self, other: object) -> Took:
        """One after the other."""
        if not isinstance(other, Took):
            return NotImplemented
        return Took(self.wall + other.wall, self.processor + other.processor)


@dataclass
class Row:
    """One program on one file: its size, and what every turn took."""

    name: str
    size: int = 0
    pack: list[Took] = field(default_factory=list)
    unpack: list[Took] = field(default_factory=list)

    def medians(self) -> list[tuple[float, float]]:
        """(wall, processor) seconds of packing and of restoring."""
        return [
            (statistics.median(took.wall for took in turns), statistics.median(took.processor for took in turns))
            for turns in (self.pack, self.unpack)
        ]

    def text(self, original: int, bound: float, zstd: Row | None) -> str:
        """The printed lines."""
        lines = [f"  {self.name:24} {self.size / original:6.4f} of the file, {self.size / bound:6.4f} of the bound"]
        if zstd is not None:
            lines[0] += f", {self.size / zstd.size:6.4f} of zstd"
        peers = zstd.medians() if zstd is not None else [(float("nan"), float("nan"))] * 2
        for what, (wall, processor), peer in zip(("pack", "restore + SHA-256"), self.medians(), peers, strict=True):
            rates = f"{original / wall / 1e6:5.0f} MB/s, {original / processor / 1e6:5.0f} MB/s a core"
            ratios = f"times of zstd: wall {wall / peer[0]:4.2f}, processor {processor / peer[1]:4.2f}"
            lines.append(f"    {what:18} {rates}; {ratios}")
        return "\n".join(lines)


def bundled_models(folder: Path) -> Iterator[Path]:
    """The bundled model, exported to every type of `BUNDLED_TARGETS`."""
    for target in BUNDLED_TARGETS:
        path = folder / f"books-llama-6m-{target}.gguf"
        _run([sys.executable, "-m", "edgepack", "export", str(BUNDLED), "--target", f"gguf-{target}", "-o", str(path)])
        yield path


def _run(command: Sequence[str], shell: bool = False) -> Took:
    started, before = time.perf_counter(), _children()
    subprocess.run(" ".join(command) if shell else command, check=True, capture_output=True, shell=shell)
    return Took(time.perf_counter() - started, _children() - before)


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _edgepack(path: Path, folder: Path) -> Callable[[Row], None]:
    archive, out = folder / "a.edgepack", folder / "restored"
    command = [sys.executable, "-m", "edgepack"]

    def turn(row: Row) -> None:
        archive.unlink(missing_ok=True)
        row.pack.append(_run([*command, "pack", str(path), "-o", str(archive)]))
        row.size = archive.stat().st_size
        out.unlink(missing_ok=True)
        row.unpack.append(_run([*command, "unpack", str(archive), "-o", str(out)]))

    return turn


def _program(path: Path, folder: Path, pack: str, unpack: str) -> Callable[[Row], None]:
    packed, out = folder / "packed", folder / "restored"

    def turn(row: Row) -> None:
        packed.unlink(missing_ok=True)
        row.pack.append(_run([f"{pack} -c {path} > {packed}"], shell=True))
        row.size = packed.stat().st_size
        out.unlink(missing_ok=True)
        row.unpack.append(_run([f"{unpack} -c {packed} > {out} && sha256sum {out}"], shell=True))

    return turn


def _zipnn(path: Path, folder: Path, kind: str) -> Callable[[Row], None]:
    """Its own interpreter, as ours has; the file is read whole because zipnn works on whole buffers."""
    packed, out = folder / "packed", folder / "restored"
    coder = f"import sys, zipnn; z = zipnn.ZipNN(input_format='byte', bytearray_dtype='{kind}', threads=2)"
    pack = f"{coder}; open(sys.argv[2], 'wb').write(z.compress(open(sys.argv[1], 'rb').read()))"
    unpack = f"{coder}; open(sys.argv[2], 'wb').write(z.decompress(open(sys.argv[1], 'rb').read()))"

    def turn(row: Row) -> None:
        row.pack.append(_run([sys.executable, "-c", pack, str(path), str(packed)]))
        row.size = packed.stat().st_size
        seconds = _run([sys.executable, "-c", unpack, str(packed), str(out)])
        row.unpack.append(seconds + _run(["sha256sum", str(out)]))

    return turn


def _contestants(path: Path, folder: Path, with_xz: bool) -> dict[str, Callable[[Row], None]]:
    contestants = {"edgepack": _edgepack(path, folder)}
    if shutil.which("zstd"):
        contestants[ZSTD] = _program(path, folder, f"{ZSTD} -q", "zstd -d --long=27 -q")
    if with_xz and shutil.which("xz"):
        contestants["xz -6 -T2"] = _program(path, folder, "xz -6 -T2 -k", "xz -d -T2 -k")
    kinds = {tensor.type for tensor in read_header(path).tensors if tensor.rows > 1}
    floats = {GGMLType.BF16: "bfloat16", GGMLType.F16: "float16", GGMLType.F32: "float32"}
    if importlib.util.find_spec("zipnn") and len(kinds) == 1 and (kind := floats.get(kinds.pop())):
        contestants["zipnn"] = _zipnn(path, folder, kind)
    return contestants


def compare(path: Path, turns: int, xz_limit: int) -> None:
    """Print a table for one file."""
    original = path.stat().st_size
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        contestants = _contestants(path, Path(scratch), original <= xz_limit)
        rows = {name: Row(name) for name in contestants}
        for _ in range(turns):  # A B A B: the machine's noise falls on all alike
            for name, turn in contestants.items():
                turn(rows[name])
        archive = Path(scratch) / "a.edgepack"
        verify = original / _run([sys.executable, "-m", "edgepack", "verify", str(archive)]).processor / 1e6
        sha = original / _run(["sha256sum", str(path)]).processor / 1e6
        with open_archive(archive) as opened:
            segments = opened.main.segments
            first = next(segment.first_chunk for segment in segments if segment.entry.name)
            header = int(opened.index.chunks["record_bytes"][:first].sum())
    bound = entropy_bound(path) + header
    print(f"{path.name}: {format_size(original)}, bound {bound / original:.4f} of the file")
    for row in rows.values():
        print(row.text(original, bound, rows.get(ZSTD)))
    print(f"  verify {verify:.0f} MB/s a core of the restored size, sha256sum of the file {sha:.0f} MB/s", flush=True)


def measure_update(parameters: int, kind: GGMLType, folder: Path) -> None:
    """Print what a changed chat template costs: patches between GGUFs, between archives, and with --base."""
    old, new = folder / "old.gguf", folder / "new.gguf"
    random_model(old, parameters, kind, vocabulary=128_000)
    template = "{% for m in messages %}{{ m.content }}{% endfor %}" * 40
    random_model(new, parameters, kind, template, vocabulary=128_000)
    before, after, based = (folder / f"{name}.edgepack" for name in ("old", "new", "based"))
    command = [sys.executable, "-m", "edgepack"]
    _run([*command, "pack", str(old), "-o", str(before), "--level", "6"])
    _run([*command, "pack", str(new), "-o", str(after), "--level", "6"])
    _run([*command, "pack", str(new), "-o", str(based), "--base", str(before)])
    print(f"another chat template in a model of {format_size(old.stat().st_size)} with 128,000 tokens")
    for name, pair in {"GGUF": (old, new), "archive": (before, after), "archive, --base": (before, based)}.items():
        seconds = _run([*command, "diff", str(pair[0]), str(pair[1]), "-o", str(folder / "p.edgepatch")])
        applied = _run([*command, "patch", str(pair[0]), str(folder / "p.edgepatch"), "-o", str(folder / "patched")])
        _run(["cmp", str(folder / "patched"), str(pair[1])])
        size = format_size((folder / "p.edgepatch").stat().st_size)
        walls = f"made in {seconds.wall:.1f} s, applied and verified in {applied.wall:.1f} s"
        print(f"  {name:16} patch of {size:>8}, {walls}")


_PEAK = (
    "import resource, sys; from edgepack.cli import execute; code = execute(sys.argv[1:]); "
    "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, file=sys.stderr); sys.exit(code)"
)


def _peak_memory(arguments: list[str], shell_in: str = "", shell_out: str = "") -> tuple[int, float]:
    """(peak resident bytes, seconds) of one command in a process of its own."""
    command = " ".join([sys.executable, "-c", f'"{_PEAK}"', *arguments, shell_in, shell_out])
    started = time.perf_counter()
    result = subprocess.run(command, shell=True, check=True, capture_output=True, text=True)
    return int(result.stderr.split()[-1]), time.perf_counter() - started


def measure_memory(size: int, folder: Path) -> None:
    """Print the peak memory of every direction for a file of `size` bytes."""
    gguf, archive, out = sparse_model(folder / "sparse.gguf", size), folder / "a.edgepack", folder / "out.gguf"
    runs = {
        "pack": (["pack", str(gguf), "-o", str(archive)], "", ""),
        "pack -o -": (["pack", str(gguf), "-o", "-"], "", f"| cmp - {archive}"),
        "verify --deep": (["verify", "--deep", str(archive)], "", ""),
        "unpack": (["unpack", str(archive), "-o", str(out)], "", ""),
        "unpack -": (["unpack", "-", "-o", str(out)], f"< {archive}", ""),
    }
    print(f"a GGUF of {format_size(gguf.stat().st_size)}, each command in a process of its own")
    for name, (arguments, shell_in, shell_out) in runs.items():
        peak, seconds = _peak_memory(arguments, shell_in, shell_out)
        print(f"  {name:14} peak {format_size(peak):>8}, {gguf.stat().st_size / seconds / 1e6:5.0f} MB/s", flush=True)
        if out.exists():
            _run(["cmp", str(gguf), str(out)])
            out.unlink()


def parse_parameters(text: str) -> int:
    """Weights from a text such as 1b or 300m."""
    units = {"m": 10**6, "b": 10**9}
    return round(float(text[:-1]) * units[text[-1].lower()])


def main() -> None:
    """Read the options and print a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, nargs="+", help="these files only")
    parser.add_argument("--parameters", type=parse_parameters, default=10**9, help="of the random model; 1b")
    parser.add_argument("--target", default="q5_k", help="the random model's type; q5_k")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--xz-limit", type=int, default=64 << 20, help="xz runs only on files up to so many bytes")
    parser.add_argument("--update", action="store_true", help="only what a changed chat template costs")
    parser.add_argument("--memory", type=float, metavar="GB", help="only the peak memory for a file of so many GB")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.memory:
            measure_memory(round(arguments.memory * 1e9), Path(scratch))
            return
        if arguments.update:
            measure_update(arguments.parameters, GGMLType[arguments.target.upper()], Path(scratch))
            return
        if arguments.gguf:
            for path in arguments.gguf:
                compare(path, arguments.turns, arguments.xz_limit)
            return
        for path in bundled_models(Path(scratch)):
            compare(path, arguments.turns, arguments.xz_limit)
        kind = GGMLType[arguments.target.upper()]
        path = random_model(Path(scratch) / f"random-{arguments.target}.gguf", arguments.parameters, kind)
        compare(path, arguments.turns, arguments.xz_limit)


_SPEED = (
    r"^  (?P<name>\S.*?) +[\d.]+ of the file.*\n"
    r" +pack +(?P<pack>\d+ MB/s), .*wall +(?P<pack_ratio>[\d.]+),.*\n"
    r" +restore \+ SHA-256 +(?P<restore>\d+ MB/s), .*wall +(?P<restore_ratio>[\d.]+),"
)


def archive_tables(printed: str) -> list[list[list[str]]]:
    """What `compare` printed, as tables: sizes, a row a file; speeds by the clock on the last one, a row a program."""
    blocks = re.split(r"^(?=\S+: .* of the file$)", printed, flags=re.MULTILINE)
    rows = [["GGUF", "size", "archive / file", "over the order-0 entropy bound", f"against `{ZSTD}`"]]
    for block in blocks:
        ours = re.search(r"edgepack +([\d.]+) of the file, ([\d.]+) of the bound(?:, ([\d.]+) of zstd)?", block)
        if ours:
            name, size = re.match(r"(\S+): (.*), bound", block).groups()  # type: ignore[union-attr]
            rows.append([name, size, *(found or "" for found in ours.groups())])
    speeds = [[f"on {rows[-1][0]}", "pack", "restore and SHA-256", "time of zstd's, packing", "restoring"]]
    found = re.finditer(_SPEED, blocks[-1], re.MULTILINE)
    speeds += [list(each.group("name", "pack", "restore", "pack_ratio", "restore_ratio")) for each in found]
    return [rows, speeds]


if __name__ == "__main__":
    from figure_file import run_with_figure

    run_with_figure(main, archive_tables)
