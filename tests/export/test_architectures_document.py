"""docs/adding-an-architecture.md says what the code says."""

from __future__ import annotations

import re

from conftest import ROOT

from edgepack.export.rules.mapping import families

DOCUMENT = (ROOT / "docs/adding-an-architecture.md").read_text()


def test_its_code_is_the_code_that_runs() -> None:
    [family] = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    [line] = re.findall(r"`(TinyModel\(.*\),)`", DOCUMENT)
    assert family.strip() in (ROOT / "export/architectures/olmo2.py").read_text()
    assert line in (ROOT / "tests/export/test_architectures.py").read_text()


def test_its_table_has_every_file_and_class() -> None:
    shown = DOCUMENT.split("## What is there")[1]
    rows = [row.split("|")[1:3] for row in shown.splitlines() if row.startswith("| `")]
    files = {name for cell, _ in rows for name in re.findall(r"`(\w+)`", cell)}
    classes = {name.strip() for _, cell in rows for name in cell.split(",")}
    assert files == {path.stem for path in (ROOT / "export/architectures").glob("*.py")}
    assert classes == set(families())
