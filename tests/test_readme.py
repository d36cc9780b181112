"""The README's examples are tests: every console line runs, in order, in one folder."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

import pytest

from edgepack.cli import execute as run

if TYPE_CHECKING:
    from pathlib import Path


def console_lines(text: str) -> list[str]:
    """The commands of every block marked `console`."""
    blocks = re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


@pytest.mark.slow
def test_every_console_line_of_the_readme_runs(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = request.config.rootpath
    lines = console_lines((root / "README.md").read_text(encoding="utf-8"))
    assert len(lines) > 8
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/data").symlink_to(root / "tests/data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "edgepack"
        assert run(arguments) == 0, line


def test_every_file_that_the_readme_links_to_is_there(request: pytest.FixtureRequest) -> None:
    root = request.config.rootpath
    links = re.findall(r"\]\(([^)#:]+)\)", (root / "README.md").read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (root / link).exists()] == []


def test_every_command_and_exit_code_is_documented(request: pytest.FixtureRequest) -> None:
    from edgepack import errors

    text = (request.config.rootpath / "README.md").read_text(encoding="utf-8")
    codes = {
        kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.EdgepackError)
    }
    documented = text[text.index("- Exit codes:") :].split("Licence")[0]
    assert [code for code in sorted(codes - {70}) if not re.search(rf"\b{code} ", documented)] == []
