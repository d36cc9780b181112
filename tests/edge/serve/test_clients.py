"""Real clients: each cell of the table in docs/runtime.md is a test."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from serving import Server

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[3]
# The client's name in the document → what must be installed for it.
CLIENTS = {
    "openai": "openai",
    "anthropic": "anthropic",
    "LangChain": "langchain_openai",
    "litellm": "litellm",
    "instructor": "instructor",
    "llm": "llm",
    "curl": "curl",
}


def table() -> list[tuple[str, str]]:
    """Cells of the document's table that say yes: client, feature."""
    lines = (ROOT / "docs/runtime.md").read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| feature |"))
    clients = [cell.strip() for cell in lines[start].strip("|").split("|")][1:]
    cells = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        feature, *marks = [cell.strip() for cell in line.strip("|").split("|")]
        cells += [(client, feature) for client, mark in zip(clients, marks, strict=True) if mark == "✓"]
    return cells


@cache
def results(client: str, url: str) -> dict[str, str]:
    """Every feature of one client, tried in one process: importing some of them takes seconds."""
    installed = shutil.which("curl") if client == "curl" else importlib.util.find_spec(CLIENTS[client])
    if not installed:
        pytest.skip(f"{client} is not installed: pip install 'edgepack[clients]'")
    script = Path(__file__).parent / "clients" / f"client_{client.lower()}.py"
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    done = subprocess.run(
        [sys.executable, str(script), url, "served"], capture_output=True, text=True, timeout=300, env=environment,
        check=False,
    )  # fmt: skip
    told = [line for line in done.stdout.splitlines() if line.startswith("RESULTS ")]
    assert told, done.stderr[-2000:]
    return dict(json.loads(told[0].removeprefix("RESULTS ")))


@pytest.mark.parametrize(("client", "feature"), table())
def test_a_client_gets_what_it_asks_for(server: Server, client: str, feature: str) -> None:
    assert results(client, server.url)[feature] == "ok"


@pytest.mark.parametrize("client", CLIENTS)
def test_the_table_says_all_that_is_tried(server: Server, client: str) -> None:
    assert {feature for name, feature in table() if name == client} == set(results(client, server.url))
