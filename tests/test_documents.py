"""What the documents point at is there: files, tools, links; code that they show is code that runs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from conftest import ROOT

if TYPE_CHECKING:
    from pathlib import Path

DOCUMENTS = sorted((ROOT / "docs").glob("*.md"))
_PATHS = re.compile(
    r"`((?:src|api|cli|gguf|pipeline|export|quant|packaging|edge|tools|tests)/[\w/.*-]+\.(?:py|md|toml|json|html))`"
)
_TOOLS = re.compile(r"python (tools/\w+\.py)")
_PLACES = (ROOT, ROOT / "src/edgepack")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_a_document_names_are_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    if document.name == "lab-notes.md":
        pytest.skip("notes keep the names of their day")
    named = {*_PATHS.findall(text), *_TOOLS.findall(text)}
    absent = [
        name
        for name in named
        if not re.search(r"\*|NAME", name) and not any((place / name).exists() for place in _PLACES)
    ]
    assert absent == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []


def test_the_pass_that_is_shown_is_the_pass_that_runs() -> None:
    [shown] = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/adding-a-pass.md").read_text(encoding="utf-8"), re.DOTALL
    )
    code = (ROOT / "quant/passes/gptq_pass.py").read_text(encoding="utf-8")
    for part in shown.strip().split("\n\n\n"):
        assert part in code


def test_the_codecs_protocol_is_the_one_that_is_shown() -> None:
    [shown] = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/adding-a-codec.md").read_text(encoding="utf-8"), re.DOTALL
    )
    code = (
        (ROOT / "quant/codecs/codec.py")
        .read_text(encoding="utf-8")
        .split("class Codec(Protocol)")[1]
        .split("\n\n\n")[0]
    )
    assert re.findall(r"def (\w+)", shown) == re.findall(r"def (\w+)", code)


def test_every_room_that_the_walks_name_is_there() -> None:
    """`edge/fit/graph` and its like are modules or folders."""
    text = (
        (ROOT / "docs/architecture.md").read_text(encoding="utf-8").split("## Five walks")[1].split("## Where do I")[0]
    )
    named = set(re.findall(r"`((?:api|cli|pipeline|export|quant|packaging|edge)/[\w/]+)(?:\.\w+(?:\.\w+)*)?`", text))
    assert len(named) > 30
    for name in named:
        found = [place / f"{name}{suffix}" for place in _PLACES for suffix in ("", ".py")]
        assert any(path.exists() for path in found), name
