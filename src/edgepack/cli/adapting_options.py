"""Options that `recover` and `teach` share: how an adapter is trained, on what, and where it goes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepack.cli.output import SIZE, force_option, json_option, note, print_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgepack.api.recover import RecoverResult
    from edgepack.api.teach import TeachResult
    from edgepack.pipeline.adapting.settings import Forecast

PATH = click.Path(path_type=Path)


class RateType(click.ParamType[float | None]):
    """A learning rate, or `auto`."""

    name = "rate"

    def convert(
        self, value: str | float | None, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | None:
        """The rate; None for `auto`."""
        if value is None or value == "auto":
            return None
        try:
            return float(value)
        except ValueError:
            self.fail(f"expected a number or auto, got '{value}'", param, ctx)


def adapting_options(rank: int, alpha: str, rate: str, batch: int, ctx: int) -> Callable[[Any], Any]:
    """All shared options, with the defaults of one command."""
    options = [
        click.option("-o", "--output", type=PATH, help="The adapter, or with --pack the archive."),
        click.option("--pack", is_flag=True, help="Write an archive of model, adapter and card."),
        click.option("--rank", type=click.IntRange(1, 4096), default=rank, show_default=True, help="Of the adapter."),
        click.option("--alpha", type=float, help=f"Its product is scaled by alpha over the rank.  [default: {alpha}]"),
        click.option(
            "--module", "modules", multiple=True, metavar="NAME",
            help="A projection that gets factors, such as q_proj; repeatable. Default: all.",
        ),
        click.option(
            "--rate", type=RateType(), default=rate, show_default=True, metavar="R",
            help="Of AdamW; auto takes one by the model's width.",
        ),
        click.option("--epochs", type=float, default=3.0, show_default=True, help="How often each example is learnt."),
        click.option("--steps", type=click.IntRange(0), help="In place of epochs; 0 changes nothing."),
        click.option("--batch", type=click.IntRange(1), default=batch, show_default=True, help="Examples a step."),
        click.option("--ctx", type=click.IntRange(8), default=ctx, show_default=True, help="Tokens of an example."),
        click.option("--max-memory", type=SIZE, help="What training may take, such as 16GB."),
        click.option("--device", default="cpu", show_default=True, metavar="D", help="Torch device."),
        click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Of all chance."),
        click.option("--threads", type=click.IntRange(0), default=0, help="Of llama.cpp.  [default: every core]"),
        click.option("--resume", is_flag=True, help="Go on with an interrupted run of the same."),
        click.option("--dry-run", is_flag=True, help="Say how long it would take and how much memory; write nothing."),
        force_option, json_option,
    ]  # fmt: skip

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def told_shortly(result: RecoverResult | TeachResult, *, as_json: bool) -> bool:
    """Print a result for scripts, or what a dry run expects; False where a person is still to be told what was made."""
    if as_json:
        print_json(result.json())
    elif result.forecast is not None:
        note(f"{result.output}: {_forecast_line(result.forecast)}")
    return as_json or result.forecast is not None


def _forecast_line(found: Forecast) -> str:
    """For people."""
    from edgepack.quantities import format_duration, format_size

    return (
        f"about {format_duration(found.seconds)} and {format_size(found.memory)} of memory: {found.steps} steps over"
        f" {found.examples} examples"
    )
