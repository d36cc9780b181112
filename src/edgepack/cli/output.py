"""What every command prints alike: progress bars, one JSON object, sizes read from options.

It knows nothing of any command.
"""

from __future__ import annotations

import json
import re
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from edgepack.cli.heartbeat import Heartbeat
from edgepack.cli.printable import printable
from edgepack.errors import UsageError
from edgepack.quantities import parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_STEERING = re.compile("[\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # JSON escapes the rest itself

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, nothing else.")

force_option = click.option("--force", is_flag=True, help="Replace files that are there already; never an input.")


@contextmanager
def terminal_progress(label: str, total: int, unit: str = "B") -> Iterator[Callable[[int], object]]:
    """A bar on stderr for work over half a second; a line each minute when stderr is not a terminal."""
    if not sys.stderr.isatty():
        context = click.get_current_context(silent=True)
        beating = None if context is None else context.find_object(Heartbeat)
        if beating is None:
            yield lambda _amount: None
            return
        with beating.stretch(label, total, unit) as advance:
            yield advance
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=label, unit=unit, unit_scale=True, delay=0.5, leave=False, file=sys.stderr) as bar:
        yield bar.update


def print_json(result: Mapping[str, Any]) -> None:
    """One JSON object on stdout; characters that would steer a terminal are escaped, as JSON allows."""
    text = json.dumps(result, ensure_ascii=False, allow_nan=False)
    click.echo(_STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def say(text: str = "", *, nl: bool = True) -> None:
    """Text for people on stdout, tables and answers; on a terminal without characters that would steer it."""
    click.echo(printable(text) if sys.stdout.isatty() else text, nl=nl)


def note(text: str) -> None:
    """A line for people, on stderr, so that stdout stays what scripts read."""
    click.echo(printable(text), err=True)


class SizeType(click.ParamType[int]):
    """An option that accepts `2.5GB`, `2.5GiB`, `500MB` and gives bytes."""

    name = "size"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes of `value`."""
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


SIZE = SizeType()
