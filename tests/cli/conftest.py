"""What tests of several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from edgepack.cli import execute

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, str]]:
    """Runs a command that must end with a code; gives what it printed and said."""
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))

    def call(code: int, *arguments: object) -> tuple[str, str]:
        assert execute([str(each) for each in arguments]) == code, capsys.readouterr().err
        out, err = capsys.readouterr()
        return out, err

    return call
