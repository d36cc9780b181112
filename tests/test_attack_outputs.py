"""A sample of tools/attack_outputs.py: every command that writes, attacked at some system calls of each kind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parent.parent / "tools" / "attack_outputs.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or shutil.which("cc") is None, reason="needs Linux and a C compiler")
def test_no_attack_on_a_command_that_writes_leaves_anything_wrong() -> None:
    arguments = ["--sample", "1", "--heavy", "0", "--races", "24", "--json"]
    result = subprocess.run([sys.executable, TOOL, *arguments], cwd=TOOL.parent, capture_output=True, text=True)
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["what"] == []
    assert found["kills"] >= 30
    assert found["races"] >= 20
    assert set(found["tried"]) >= {
        "ENOSPC",
        "EIO at fsync",
        "read-only",
        "SIGINT",
        "SIGTERM",
        "SIGHUP",
        "source shrinks",
    }
