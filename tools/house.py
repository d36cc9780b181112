"""The picture of the house: every folder of the package with its modules, its lines and what it imports.

    python tools/house.py            print the table
    make figures                     put it into docs/architecture.md, between its markers

Read from the sources, so it cannot go stale: tests/test_architecture.py holds folders and imports against the
document exactly, and lets lines drift (they are told in hundreds, and only rendering moves them).
"""

from __future__ import annotations

import ast
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src/edgepack"
PARTS = ("export", "quant", "packaging", "edge")
BEGIN, END = "<!-- house -->", "<!-- /house -->"
_HEAD = "| folder | modules | lines | imports |\n|---|---|---|---|"


@dataclass
class Folder:
    """One folder.

    Attributes:
        modules: how many.
        lines: in all of them.
        imports: other folders, dotted below `edgepack`; modules at the top of the package by their own name.
    """

    modules: int = 0
    lines: int = 0
    imports: set[str] = field(default_factory=set)


def modules() -> dict[str, Path]:
    """Dotted name, `edgepack` included → file, of every module; a package by its own name."""
    found = {".".join(("edgepack", *path.relative_to(PACKAGE).with_suffix("").parts)): path
             for path in PACKAGE.rglob("*.py")}  # fmt: skip
    for part in PARTS:
        for path in (ROOT / part).rglob("*.py"):
            found[".".join(("edgepack", *path.relative_to(ROOT).with_suffix("").parts))] = path
    return {name.removesuffix(".__init__"): path for name, path in sorted(found.items())}


def imports_of(path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of edgepack that a file imports when it runs: inside functions too, for type checkers not."""
    found: set[str] = set()
    for node in _running(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in known}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name for name in names if name in known}
            if any(name not in known for name in names) and node.module in known:
                found.add(node.module)
    return found


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """Every node but those under `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            for other in child.orelse:
                yield from _running(other)
            continue
        yield child
        yield from _running(child)


def folder_of(name: str, path: Path) -> str:
    """The folder that a module lies in, dotted; a module at the top of the package is told by its own name."""
    inside = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return name if inside == "edgepack" else inside


def folders() -> dict[str, Folder]:
    """Folder → what is in it, in the order of names."""
    known, found = modules(), defaultdict(Folder)
    places = {name: folder_of(name, path) for name, path in known.items()}
    for name, path in known.items():
        folder = found[places[name]]
        folder.modules += 1
        folder.lines += len(path.read_text(encoding="utf-8").splitlines())
        folder.imports |= {places[other] for other in imports_of(path, known)} - {places[name]}
    return dict(sorted(found.items()))


def rows() -> list[tuple[str, int, int, str]]:
    """(folder, modules, lines, folders it imports) of every folder; what lies at the package's top is the first row."""
    found = folders()
    top = {name for name in found if name.count(".") <= 1 and _is_module(name)}
    shown = []
    merged = Folder(sum(found[name].modules for name in top), sum(found[name].lines for name in top),
                    set().union(*(found[name].imports for name in top)) - top)  # fmt: skip
    for name, folder in [("edgepack", merged), *((n, f) for n, f in found.items() if n not in top)]:
        own = sorted(_short(other) for other in folder.imports - top)
        shown.append((_short(name) or "(top)", folder.modules, folder.lines, ", ".join(own)))
    return shown


def _is_module(name: str) -> bool:
    return name == "edgepack" or (PACKAGE / f"{name.removeprefix('edgepack.')}.py").is_file()


def _short(name: str) -> str:
    return name.removeprefix("edgepack").removeprefix(".").replace(".", "/")


def table() -> str:
    """The picture as Markdown."""
    lines = [f"| {folder} | {count} | {_hundreds(size)} | {imports} |" for folder, count, size, imports in rows()]
    return "\n".join([_HEAD, *lines])


def _hundreds(lines: int) -> str:
    return f"{max(100, round(lines, -2)):,}"


def with_table(text: str) -> str:
    """A document with the picture anew, where it has one."""
    if BEGIN not in text:
        return text
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


def without_table(text: str) -> str:
    """A document without the picture."""
    head, _, rest = text.partition(BEGIN)
    return head + rest.partition(END)[2]


def cycles() -> list[list[str]]:
    """Groups of modules that import each other, imports inside functions included (Tarjan's components)."""
    known = modules()
    graph = {name: sorted(imports_of(path, known) - {name}) for name, path in known.items()}
    return [sorted(group) for group in _components(graph) if len(group) > 1]


def _components(graph: dict[str, list[str]]) -> list[list[str]]:
    """Strongly connected components: whoever reaches each other (R. Tarjan, 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in graph[name]:
            if other not in order:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], order[other])
        if low[name] == order[name]:
            place = stack.index(name)
            found.append(stack[place:])
            del stack[place:]

    for name in graph:
        if name not in order:
            visit(name)
    return found


if __name__ == "__main__":
    print(table())
    for group in cycles():
        print("cycle:", " ".join(group))
