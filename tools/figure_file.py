"""A figure is one table of the documents, kept as docs/figures/NAME.json with where its numbers come from.

A bench ends in `run_with_figure(main)`: called with `--figure NAME`, the Markdown table that it prints is kept under
that name, with the commit, the machine, the versions, the command and the day. A command that prints several tables
takes a name for each, in order and separated by commas, `-` for one that is not kept. Putting tables into the
documents is left to `figures`.
"""

from __future__ import annotations

import datetime as dt
import io
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs/figures"
OPTION = "--figure"
NOT_KEPT = "-"
_PACKAGES = ("edgepack", "numpy", "torch", "transformers", "llama-cpp-python", "xllamacpp", "gguf", "zstandard")
_SOURCES = ("src", "export", "quant", "packaging", "edge", "tools")


@dataclass(frozen=True)
class Machine:
    """Where something was measured: the processor's name, logical cores that could be used, bytes of memory."""

    cpu: str
    cores: int
    memory_bytes: int


@dataclass(frozen=True)
class Figure:
    """One table and its origin.

    Attributes:
        name: of the file, and in the document's marker.
        columns: headings.
        rows: cells as they are printed.
        commit: that measured it, `+changes` where the tree differed from it.
        date: of the measurement, ISO 8601.
        command: what prints it, from the root of the repository.
        table: its place among the tables that the command prints, from 0.
        machine: where; None where that was not recorded.
        versions: package → version.
        note: what a reader must know besides; empty for nothing.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    commit: str
    date: str
    command: str
    table: int = 0
    machine: Machine | None = None
    versions: Mapping[str, str] | None = None
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"figure {self.name}: expected {len(self.columns)} cells, got {len(row)}: {row}")

    @property
    def path(self) -> Path:
        """Where it is kept."""
        return FOLDER / f"{self.name}.json"

    def write(self) -> None:
        """Keep it."""
        FOLDER.mkdir(exist_ok=True)
        self.path.write_text(json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def read_figure(path: Path) -> Figure:
    """The figure in a file; raises ValueError, TypeError or KeyError where it is none."""
    held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    held["columns"], held["rows"] = tuple(held["columns"]), tuple(map(tuple, held["rows"]))
    held["machine"] = Machine(**held["machine"]) if held["machine"] else None
    figure = Figure(**held)
    if figure.path.name != path.name:
        raise ValueError(f"{path.name}: holds figure '{figure.name}'")
    return figure


def all_figures() -> dict[str, Figure]:
    """Name → figure, of everything that is kept."""
    found = map(read_figure, sorted(FOLDER.glob("*.json")))
    return {figure.name: figure for figure in found}


def run_with_figure(main: Callable[[], int | None], read: Callable[[str], list[list[list[str]]]] | None = None) -> None:
    """Run a bench, keep the tables that it prints where the command line says so, and exit as it says.

    Args:
        main: parses `sys.argv`, which is without the option by then.
        read: text that was printed → tables, each a list of rows with the headings first; default: Markdown's.
    """
    names = _take_names(sys.argv)
    if not names:
        sys.exit(main())
    commit, command = current_commit(), command_line(sys.argv)
    printed = _Tee(sys.stdout)
    with redirect_stdout(printed):
        code = main()
    tables = (read or markdown_tables)(printed.getvalue())
    if len(tables) < len(names):
        sys.exit(f"{OPTION}: {len(names)} names, but {len(tables)} tables were printed")
    for place, (name, table) in enumerate(zip(names, tables, strict=False)):
        if name != NOT_KEPT:
            rows = tuple(map(tuple, table[1:]))
            day = dt.datetime.now(dt.timezone.utc).date().isoformat()
            figure = Figure(name, tuple(table[0]), rows, commit, day, command, place, this_machine(), versions())
            figure.write()
            print(f"kept as {figure.path.relative_to(ROOT)}", file=sys.stderr)
    sys.exit(code)


class _Tee(io.StringIO):
    """Keeps what is printed and shows it too."""

    def __init__(self, shown: TextIO) -> None:
        super().__init__()
        self._shown = shown

    def write(self, text: str) -> int:
        self._shown.write(text)
        self._shown.flush()
        return super().write(text)


def _take_names(arguments: list[str]) -> list[str]:
    if OPTION not in arguments:
        return []
    place = arguments.index(OPTION)
    if place + 1 == len(arguments):
        sys.exit(f"{OPTION}: expected a name")
    names = arguments[place + 1].split(",")
    del arguments[place : place + 2]
    return names


def markdown_tables(text: str) -> list[list[list[str]]]:
    """Every Markdown table in a text: rows of cells, the headings first, the line of dashes left out."""
    tables: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            tables[-1].append(split_row(line))
        elif tables[-1]:
            tables.append([])
    return [[table[0], *table[2:]] for table in tables if len(table) > 1]


def split_row(line: str) -> list[str]:
    """The cells of one line of a Markdown table; a bar behind a backslash is no border."""
    inner = line.strip().removeprefix("|").removesuffix("|")
    return [cell.strip().replace("\0", r"\|") for cell in inner.replace(r"\|", "\0").split("|")]


def aligned_tables(text: str) -> list[list[list[str]]]:
    """The one table that is printed in columns: headings end where their cells end, and the first column has none."""
    lines = text.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("  ") and line.strip())
    ends = [match.end() for match in re.finditer(r"\S+", lines[start])]
    # The label's column ends where no row has a character of the next one: before the widest first cell.
    rows = [line.ljust(ends[-1]) for line in lines[start + 1 :] if len(line) > ends[0]]
    label = max(len(re.split(r"  +", row)[0]) for row in rows)
    borders = [0, label, *ends]
    cells = [[row[a:b].strip() for a, b in pairwise(borders)] for row in rows]
    return [[["", *lines[start].split()], *cells]]


def current_commit() -> str:
    """The commit of the checkout, marked where the sources differ from it."""
    commit = _git("rev-parse", "--short=7", "HEAD")
    return f"{commit}+changes" if _git("status", "--porcelain", "--", *_SOURCES) else commit


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def command_line(arguments: list[str]) -> str:
    """The command as one would type it at the root of the repository."""
    return shlex.join(["python", *(_relative(argument) for argument in arguments)])


def _relative(argument: str) -> str:
    """A file of this machine as a path from the root; anything else as it is."""
    path = Path(argument)
    if not path.exists() or ROOT.parent not in path.resolve().parents:
        return argument
    return os.path.relpath(path.resolve(), ROOT)


def this_machine() -> Machine:
    """The machine that this runs on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(_cpu_name(), cores, memory)


def _cpu_name() -> str:
    described = Path("/proc/cpuinfo")
    if described.is_file():
        for line in described.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of what has a part in measurements, where it is installed."""
    found = {package: _version(package) for package in _PACKAGES}
    return {"python": platform.python_version(), **{name: each for name, each in found.items() if each}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
