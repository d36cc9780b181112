"""What the tools import is there: they are run by hand, and a name that has moved would be found out then."""

from __future__ import annotations

import ast
import importlib
from importlib.util import find_spec
from pathlib import Path

import pytest


class Taken(ast.NodeVisitor):
    """(module, name) of each import from edgepack; what only type checkers read is mypy's."""

    def __init__(self) -> None:
        self.names: list[tuple[str, str]] = []

    def visit_If(self, node: ast.If) -> None:
        if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.module is not None and node.module.partition(".")[0] == "edgepack":
            self.names += [(node.module, alias.name) for alias in node.names]


TOOLS = sorted((Path(__file__).resolve().parent.parent / "tools").glob("*.py"))


@pytest.mark.parametrize("tool", TOOLS, ids=lambda path: path.stem)
def test_every_name_that_a_tool_takes_from_edgepack_is_there(tool: Path) -> None:
    pytest.importorskip("torch")
    taken = Taken()
    taken.visit(ast.parse(tool.read_text(encoding="utf-8")))
    for module, name in taken.names:
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("edgepack"):
                raise
            pytest.skip(f"{module} needs {error.name}")
        assert hasattr(found, name) or find_spec(f"{module}.{name}") is not None, f"{module} has no {name}"
