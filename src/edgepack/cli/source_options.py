"""Options that name what a derivation was made from, beside the model: of every command that makes a file again.

What becomes of them is the command's business.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

_PATH = click.Path(path_type=Path)
_OPTIONS = (
    click.option("--imatrix", type=_PATH, metavar="FILE", help="Likewise the importance matrix."),
    click.option("--adapter", type=_PATH, metavar="DIR", help="Likewise the PEFT adapter."),
    click.option("--text", type=_PATH, metavar="FILE", help="Likewise the text that a wire's gate was judged on."),
    click.option("--factors", type=_PATH, metavar="FILE", help="Likewise the low-rank factors that were read."),
    click.option("--threads", type=click.IntRange(1), help="Workers; one a core by default."),
)


def source_options(calibration: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the options to a command; `calibration` is the help of the first, to which the others' refers."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(_OPTIONS):
            command = option(command)
        return click.option("--calibration", type=_PATH, metavar="TEXT", help=calibration)(command)

    return add
