"""Options that score or judge mean the same in every command that has them."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import click
import pytest

from edgepack.cli import COMMANDS, root

COMMON = ("--text", "--chunks", "--min-agreement", "--max-kl", "--max-perplexity-ratio", "--ctx", "--stride", "--floor",
          "--blockwise", "--greedy", "--report")  # fmt: skip
SCORING = ("validate", "compare", "certify", "evaluate", "prune-grid", "export")
VALUES = {"--text": "a.txt", "--chunks": "3", "--ctx": "64", "--stride": "8", "--greedy": "2", "--report": "a.html"}
# `export` asks for less, `prune-grid` has a default bar: their help says so, the values are the same.
OWN_HELP = {"export", "prune-grid"}


def options_of(name: str) -> dict[str, click.Option]:
    command = root.get_command(click.Context(root), name)
    assert command is not None
    return {each: option for option in command.params if isinstance(option, click.Option) for each in option.opts}


@pytest.mark.parametrize("spelling", COMMON)
def test_an_option_reads_the_same_value_everywhere_and_is_declared_once(spelling: str) -> None:
    found = {name: options_of(name)[spelling] for name in SCORING if spelling in options_of(name)}
    if spelling == "--ctx":
        found.pop("evaluate")  # its items need a length of their own
    assert found
    read = {name: each.type_cast_value(click.Context(click.Command(name)), VALUES.get(spelling, "0.5"))
            for name, each in found.items() if not each.is_flag}  # fmt: skip
    assert len(set(read.values())) <= 1
    assert len({each.help for name, each in found.items() if name not in OWN_HELP}) <= 1


def test_no_command_but_the_shared_module_and_the_exports_table_declares_them() -> None:
    for name in ("validate", "compare", "certify", "evaluate"):
        source = import_module(f"edgepack.cli.{COMMANDS[name][0]}").__file__
        assert source is not None
        text = Path(source).read_text(encoding="utf-8")
        assert not [each for each in COMMON if f'"{each}"' in text and each != "--ctx"]
