"""`edgepack.export`: what the command does, with the options of `ExportRequest` as arguments."""

from __future__ import annotations

import inspect
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec

from edgepack.pipeline.export import run_export
from edgepack.pipeline.export_options import declared_options
from edgepack.pipeline.request import ExportRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgepack.pipeline.export_result import ExportResult

Options = ParamSpec("Options")


def _of_request(request: Callable[Options, ExportRequest]) -> Callable[Options, ExportResult]:
    """A function with the arguments of `request`: an option that is declared there is an argument here."""

    @wraps(request)
    def export(*values: Options.args, **options: Options.kwargs) -> ExportResult:
        return run_export(request(*values, **options))

    export.__name__ = export.__qualname__ = "export"
    export.__module__ = __name__
    lines = (f"    {name}: {declared.help}" for name, declared in declared_options().items())
    export.__doc__ = _ABOUT.format(options="\n".join(lines))
    signature = inspect.signature(request, eval_str=False)
    given = [
        each
        for name, each in signature.parameters.items()
        if name not in ("original", "shared", "crew", "remote", "stages", "passes_for")
    ]  # the pipeline's own
    export.__signature__ = signature.replace(parameters=given, return_annotation="ExportResult")  # type: ignore[attr-defined]
    return export


_ABOUT = """Make a GGUF, a GGUF of the variant, or an archive of one, of a model; with `dry_run` say what it would be.

A missed gate is no error where the target was given: the file stays, and the result's `passed` says so. Sizes may be
text (`2.5GB`).

Args:
    model: a Hugging Face folder, a GGUF, or a URL of fsspec's of such a folder (`s3://…`), as text.
    target: such as `gguf-q5km`, `edge-nf4` or `wire`; None to have one found by `max_size` or a gate.
    progress: told of every stretch of work.
    tell: told one line for each file that a search tried.
{options}

Raises:
    UsageError: options that contradict each other, or a size that cannot be met.
    CheckFailedError: no target clears the gates; nothing is written.
    EdgepackError: whatever source, passes or making find wrong; nothing is left under a final name then.
"""


export = _of_request(ExportRequest)
