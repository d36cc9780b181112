"""docs/api.md: its examples run, and its reference says what the signatures and docstrings say."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING

import api_document
import pytest

import edgepack
from edgepack.cli import execute

if TYPE_CHECKING:
    from pathlib import Path


def python_blocks(text: str) -> list[str]:
    """The Python examples, in order."""
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_every_example_runs(
    request: pytest.FixtureRequest, books: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (request.config.rootpath / "docs/api.md").read_text(encoding="utf-8")
    (tmp_path / "model").symlink_to(books)
    for name in ("text.txt", "t.txt"):
        (tmp_path / name).write_text((books.parent / "own-words.txt").read_text(encoding="utf-8")[:60_000])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    assert execute(["export", "model", "--target", "gguf-q5km", "-o", "m.gguf"]) == 0
    blocks = python_blocks(text)
    assert len(blocks) > 8
    names: dict[str, object] = {}
    for block in blocks:
        if "edgepack.export(" in block and "export" not in edgepack.__all__:
            continue
        exec(compile(block, "docs/api.md", "exec"), names)


def test_the_reference_is_what_the_code_says() -> None:
    """`python tools/api_document.py` writes it anew."""
    document = api_document.DOCUMENT.read_text(encoding="utf-8")
    assert api_document.rendered(document) == document


def test_every_argument_of_every_function_is_described() -> None:
    document = api_document.DOCUMENT.read_text(encoding="utf-8")
    for name in edgepack.__all__:
        value = getattr(edgepack, name)
        if name == "__version__" or not callable(value) or inspect.isclass(value):
            continue
        section = document.split(f"### `edgepack.{name}`\n")[1].split("\n### ")[0]
        for parameter in inspect.signature(value).parameters:
            assert f"- `{parameter}`: " in section or f"`{parameter}`" in section, f"{name}: {parameter}"
