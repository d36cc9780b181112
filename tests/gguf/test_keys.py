"""Keys are spelled in one module."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from edgepack.gguf import keys

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("src/edgepack", "export", "quant", "packaging", "edge")
SHARED = re.compile(r"(edgepack\.(wire|variant|recipe|certificate|imatrix|pass)|general|split|adapter)\.?[a-z0-9_.]*$")
# Data of their own kind: regular expressions and names that only happen to look alike.
NAMES = {value for name, value in vars(keys).items() if name.isupper() and isinstance(value, str)}


def literals(path: Path) -> set[str]:
    return {node.value for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)}  # fmt: skip


def test_a_key_that_several_modules_share_is_a_literal_in_none_but_the_keys() -> None:
    files = [path for part in PARTS for path in (ROOT / part).rglob("*.py") if path.name != "keys.py"]
    known = {value for value in NAMES if SHARED.match(value) and not value.endswith(".")}
    assert len(known) > 20
    for path in files:
        assert not literals(path) & known, path


def test_no_key_has_two_names() -> None:
    values = [value for name, value in vars(keys).items() if name.isupper()]
    assert len(values) == len(set(values))
