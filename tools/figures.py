"""Puts the tables of docs/figures into README.md and docs/*.md, between `<!-- figure NAME -->` and `<!-- /figure -->`.

    python tools/figures.py render             (make figures)
    python tools/figures.py run NAME           (make figures-run TABLE=NAME) measure it again, then render
    python tools/figures.py check              exit code 1 when rendering would change a document

How a figure is kept is `figure_file`'s; what it measures the bench's whose command it names.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

import house
from figure_file import NOT_KEPT, OPTION, ROOT, Figure, all_figures, markdown_tables

from edgepack.quantities import format_size

if TYPE_CHECKING:
    from pathlib import Path

_BLOCK = re.compile(r"<!-- figure ([\w-]+) -->\n.*?<!-- /figure -->", re.DOTALL)
_NUMBER = re.compile(r"\**[-+]?[\d.,]*\d[\d.,]*(e[-+]?\d+)?\**( ?(%|MB|GB|kB|s))?\**")


def documents() -> list[Path]:
    """Every document that may hold figures."""
    return [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]


def rendered(figure: Figure) -> str:
    """The table as Markdown, and the line that says where it comes from."""
    lines = [_row(figure.columns), "|" + "---|" * len(figure.columns), *map(_row, figure.rows)]
    return "\n".join([*lines, "", f"<sub>{origin(figure)}</sub>"])


def origin(figure: Figure) -> str:
    """Commit, day and machine in one line."""
    machine, note = figure.machine, figure.note and f"; {figure.note}"
    if machine is None:
        told = f"put here by commit {figure.commit}, {figure.date}; the machine was not recorded"
    else:
        where = f"{machine.cpu}, {machine.cores} cores, {format_size(machine.memory_bytes)}"
        told = f"commit {figure.commit}, {figure.date}, {where}"
    return f"`{figure.name}`: {told}{note}"


def _row(cells: tuple[str, ...]) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)


def with_figures(text: str, figures: dict[str, Figure]) -> str:
    """The document with every figure anew; raises KeyError for one that is not kept."""

    def block(match: re.Match[str]) -> str:
        return f"<!-- figure {match[1]} -->\n{rendered(figures[match[1]])}\n<!-- /figure -->"

    return _BLOCK.sub(block, text)


def figures_in(text: str) -> list[str]:
    """Names of the figures that a document shows."""
    return [match[1] for match in _BLOCK.finditer(text)]


def loose_tables(text: str) -> list[list[list[str]]]:
    """Tables of measured numbers that no figure holds: two or more plain numbers in a row."""
    outside = _BLOCK.sub("", house.without_table(text))
    return [
        table
        for table in markdown_tables(outside)
        if any(sum(bool(_NUMBER.fullmatch(cell)) for cell in row) > 1 for row in table[1:])
    ]


def render(*, write: bool = True) -> list[Path]:
    """Render every document, the picture of the house too; gives those that changed."""
    figures, changed = all_figures(), []
    for path in documents():
        text = path.read_text(encoding="utf-8")
        new = house.with_table(with_figures(text, figures))
        if new != text:
            changed.append(path)
            if write:
                path.write_text(new, encoding="utf-8")
    return changed


def command_of(name: str, figures: dict[str, Figure]) -> list[str]:
    """What measures a figure again, with every other one that the same command prints."""
    same = {figure.table: figure.name for figure in figures.values() if figure.command == figures[name].command}
    names = [same.get(place, NOT_KEPT) for place in range(max(same) + 1)]
    program, script, *rest = shlex.split(figures[name].command)
    if program != "python" or not (ROOT / script).is_file():
        sys.exit(f"{name}: expected a command of tools/, got: {figures[name].command}")
    return [sys.executable, script, *rest, OPTION, ",".join(names)]


def main() -> int:
    """Render, measure or check."""
    arguments = sys.argv[1:]
    figures = all_figures()
    if arguments[:1] == ["run"] and len(arguments) == 2 and arguments[1] in figures:
        command = command_of(arguments[1], figures)
        print(shlex.join(command), file=sys.stderr)
        if code := subprocess.run(command, cwd=ROOT, check=False).returncode:
            return code
        arguments = ["render"]
    if arguments not in (["render"], ["check"]):
        print(f"{__doc__}\nFigures: {', '.join(figures)}", file=sys.stderr)
        return 2
    changed = render(write=arguments == ["render"])
    for path in changed:
        print(path.relative_to(ROOT))
    return 1 if changed and arguments == ["check"] else 0


if __name__ == "__main__":
    sys.exit(main())
