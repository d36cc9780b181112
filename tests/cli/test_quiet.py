"""What libraries tell their own users does not reach ours, unless they ask for it."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest

from edgepack.cli.quiet import quiet_libraries

_WARNS = (
    "import sys, warnings; from edgepack.cli import main; import edgepack.cli.doctor as d\n"
    "d.command.callback = lambda **_: warnings.warn('of a library', FutureWarning)\n"
    "main(['doctor'])"
)


@pytest.mark.parametrize(("options", "heard"), [([], False), (["-W", "default"], True)])
def test_a_librarys_warning_is_heard_only_on_request(options: list[str], heard: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    done = subprocess.run(
        [sys.executable, *options, "-c", _WARNS], capture_output=True, text=True, env=environment, check=False
    )
    assert ("of a library" in done.stderr) == heard


def test_a_choice_of_the_users_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    with warnings.catch_warnings():
        quiet_libraries()
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "info"
    assert os.environ.pop("HF_HUB_DISABLE_PROGRESS_BARS") == "1"
