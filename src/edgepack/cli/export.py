"""`edgepack export`: a model becomes a GGUF, or an archive of one. The work is `pipeline.export`'s.

Options are made of the table in `pipeline.export_options`: a new one is declared there and used by its maker.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepack.cli.output import SIZE, json_option, note, print_json, terminal_progress
from edgepack.cli.place import Place
from edgepack.errors import CheckFailedError
from edgepack.pipeline.export_options import declared_options, default_of
from edgepack.pipeline.request import ExportRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgepack.pipeline.options import Option

_TYPES: dict[str, click.ParamType[object]] = {
    "path": click.Path(path_type=Path), "size": SIZE, "text": click.STRING, "texts": click.STRING,
    "count": click.IntRange(1), "number": click.FLOAT, "flag": click.BOOL, "switch": click.BOOL,
}  # fmt: skip


class DeclaredOption(click.Option):
    """An option of the table; its hidden spellings are understood and not shown.

    Args:
        name: the field of `ExportRequest`.
        declared: how it is spelled.
    """

    def __init__(self, name: str, declared: Option) -> None:
        is_flag, multiple = declared.value in ("flag", "switch"), declared.value == "texts"
        super().__init__(
            [*declared.spelling.split(), *declared.hidden, name],
            type=click.Choice(declared.choices) if declared.choices else _TYPES[declared.value],
            is_flag=is_flag, multiple=multiple, default=default_of(name), metavar=declared.metavar,
            show_default=declared.shows_default, help=declared.help,
        )  # fmt: skip
        self._hidden = declared.hidden

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The lines of the help, without the hidden spellings."""
        shown, every = [each for each in self.opts if each not in self._hidden], self.opts
        self.opts = shown
        try:
            return super().get_help_record(ctx)
        finally:
            self.opts = every


def _declared(function: Callable[..., int]) -> Callable[..., int]:
    """Add the options of the table."""
    options = [DeclaredOption(name, declared) for name, declared in declared_options().items()]
    function.__click_params__ = [*options, *getattr(function, "__click_params__", [])]  # type: ignore[attr-defined]
    return function


@click.command("export", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", type=Place())
@click.option("--target", metavar="T", help="gguf-q5km, gguf-f16 …; llama.cpp's spellings; edge-seedlm4 …; wire")
@json_option
@_declared
def command(model: Path | str, target: str | None, *, as_json: bool, **options: object) -> int:
    """Turn MODEL, a Hugging Face folder or a GGUF, into a GGUF in one pass; a folder's URL of fsspec's will do.

    With --min-agreement or --max-kl and no --target, the ladder of types is tried from small to large. Exits with
    1 when a gate is missed; a file that was asked for by its target is kept all the same.
    """
    from edgepack.cli.export_report import limits, report, verdict
    from edgepack.pipeline.export import run_export

    # click has checked the values against the same declarations that the fields' types stand for.
    request = ExportRequest(model, target, progress=terminal_progress, tell=note, **options)  # type: ignore[arg-type]
    result = run_export(request)
    limits(result)
    if as_json:
        print_json(result.as_json())
    else:
        report(result)
    verdict(result, quiet=as_json)
    return 0 if result.passed else CheckFailedError.exit_code
