"""What `edgepack export` tells people: the plan of a dry run, or what was written and how it did."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.cli.output import note, say
from edgepack.cli.validate import report_gates
from edgepack.quantities import format_duration, format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from edgepack.pipeline.export_result import ExportResult
    from edgepack.pipeline.outline import Json, Made, TensorRow


def limits(result: ExportResult) -> None:
    """What the user should know of before the file is used, whatever else is printed."""
    for line in result.outline.limits:
        note(line)


def report(result: ExportResult) -> None:
    """The result for people: a plan goes to stdout, what was done to stderr."""
    if result.made is None:
        _print_plan(result)
        _tell_of_forecast(result.cluster)
        return
    _tell_of_making(result.made)
    for path in result.adapters:
        note(f"{path}: {format_size(path.stat().st_size)}, a LoRA for llama.cpp to apply at run time")
    if result.projector is not None:
        size = format_size(result.projector.stat().st_size)
        note(f"{result.projector}: {size}, what sees: llama.cpp takes it as --mmproj")
    outline = result.outline
    note(
        f"{result.output}: {format_size(result.bytes)} as {outline.label}, from {format_size(outline.source_bytes)},"
        f" in {format_duration(result.seconds)}"
    )


def verdict(result: ExportResult, *, quiet: bool) -> None:
    """How the file did against its original, where it was held against it."""
    if result.validation is None:
        return
    from edgepack.edge.fidelity.outcome import as_lines

    (candidate,) = result.validation.candidates
    if not quiet:
        say("\n".join(as_lines(candidate.validation)))
    report_gates(candidate, result.gates, quiet=quiet)


def _tell_of_forecast(cluster: Mapping[str, Json] | None) -> None:
    """What the work is predicted to take on a cluster."""
    predicted = None if cluster is None else cluster.get("predicted")
    if isinstance(predicted, dict):
        say(
            f"on {predicted['processors']} processors: {format_duration(float(str(predicted['seconds'])))} of work,"
            f" {format_size(int(str(predicted['read_bytes'])))} read,"
            f" {format_size(int(str(predicted['sent_bytes'])))} sent; a piece of work takes"
            f" {format_size(int(str(predicted['peak_bytes'])))} of memory"
        )


def _tell_of_making(made: Made) -> None:
    for figures in made.figures:
        measured = ", ".join(f"{key} {_short(value)}" for key, value in figures.items() if key != "name")
        note(f"{figures['name']}: {measured}")
    for line in made.notes:
        note(f"note: {line}")
    for line in made.lines:
        note(line)


def _short(value: Json) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _print_plan(result: ExportResult) -> None:
    """The plan as a table on stdout."""
    outline = result.outline
    lines = [line for row in outline.tensors for line in _plan_lines(row)]
    width = max(len(line[0]) for line in lines)
    say(f"{'tensor':<{width}}  {'shape':<18} {'from':<6} {'to':<8} {'bytes':>14}")
    for name, shape, source, kind, size in lines:
        say(f"{name:<{width}}  {shape:<18} {source:<6} {kind:<8} {size:>14,}")
    say(
        f"{result.output}: {outline.bytes:,} bytes ({format_size(outline.bytes)}) as {outline.label},"
        f" from {format_size(outline.source_bytes)}; nothing was written"
    )


def _plan_lines(row: TensorRow) -> Iterator[tuple[str, str, str, str, int]]:
    """A tensor of the plan, and what holds it where it is coded."""
    yield row.name, " × ".join(map(str, row.shape)), row.source_type, row.type, row.bytes
    if row.type != "F32":
        for part in _parts(row.more):
            yield str(part["name"]), _extent(part), "", str(part["type"]), _count(part["bytes"])


def _parts(more: Mapping[str, Json]) -> list[dict[str, Json]]:
    found = more.get("components", [])
    return [part for part in found if isinstance(part, dict)] if isinstance(found, list) else []


def _extent(part: Mapping[str, Json]) -> str:
    shape = part["shape"]
    return str(shape[0]) if isinstance(shape, list) and shape else ""


def _count(value: Json) -> int:
    return value if isinstance(value, int) else 0
