"""`edgepack export --target wire`: the smallest archive at a fidelity; the work is `edgepack.pipeline.wire`'s."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepack.cli.output import note, print_json, terminal_progress
from edgepack.errors import UsageError
from edgepack.quantities import format_duration, format_size
from edgepack.trellis import STATES

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgepack.pipeline.wire import WireOutcome

    Decorated = Callable[..., Any]

_TAKEN = frozenset((
    "output", "pre", "calibration", "text", "min_agreement", "max_kl", "max_size", "pack", "threads", "host", "bits",
    "rdo", "trellis", "drift", "for_device", "device",
))  # fmt: skip
WIRE_OPTIONS = ("host", "bits", "rdo", "trellis", "drift", "for_device")


def wire_options(function: Decorated) -> Decorated:
    """What only the target `wire` knows."""
    options = (
        click.option("--host", metavar="H", help="For wire: q8, q6k, q5k or q4k; what llama.cpp runs."),
        click.option("--bits", type=float, metavar="B", help="For wire: archive bits a weight."),
        click.option("--rdo", type=float, metavar="L", help="For wire: pull towards zero, for rates below 3 bits."),
        click.option(
            "--trellis",
            type=click.Choice(["0", *map(str, STATES)]),
            metavar="N",
            help="For wire: states of the trellis, 8 by default; 64 gain a little more, slowly; 0: none.",
        ),
        click.option("--drift", is_flag=True, help="For wire: fit blocks to what the rounded ones before give."),
        click.option("--for-device", metavar="D", help="For wire: a device that must hold the host, such as gtx-1660."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def export_wire(model: Path, *, as_json: bool, **options: Any) -> None:
    """Search the one scalar that reaches the goal and say what it gave."""
    from edgepack.export.wire.rounding import DEFAULT_TRELLIS, WireSettings
    from edgepack.pipeline.wire import Goal
    from edgepack.pipeline.wire import export_wire as run
    from edgepack.pipeline.wire_host import check_host, choose_host
    from edgepack.quant.codecs.ggml.host_grids import find_host

    left = sorted(
        name for name, value in options.items() if name not in _TAKEN and value not in (None, False, (), "merge")
    )
    if left:
        raise UsageError(f"--{left[0].replace('_', '-')}: not an option of target 'wire'")
    goal = Goal(options["bits"], options["max_size"], options["min_agreement"], options["max_kl"])
    if not model.is_dir():
        raise UsageError(f"--target wire: expected a Hugging Face folder, got '{model}'")
    pre, device = options["pre"], options["for_device"]
    host = find_host(options["host"]) if options["host"] else choose_host(model, device, pre=pre)
    check_host(model, host, device, pre=pre)
    suffix = ".edgepack" if options["pack"] else ".gguf"
    output = options["output"] or Path(f"{model.resolve().name}-wire-{host.kind.name}{suffix}")
    if options["pack"] and output.suffix != ".edgepack":
        raise UsageError(f"--pack: expected an output that ends in .edgepack, got '{output}'")
    trellis = int(options["trellis"]) if options["trellis"] is not None else DEFAULT_TRELLIS
    settings = WireSettings(
        host, rdo=options["rdo"] or 0.0, trellis=trellis, drift=options["drift"], device=options["device"]
    )
    outcome = run(
        model, output, settings, goal, calibration=options["calibration"],
        text=options["text"], pre=pre, threads=options["threads"], progress=terminal_progress,
    )  # fmt: skip
    if as_json:
        print_json(_as_object(outcome))
    else:
        _print(outcome, host.kind.name)


def _as_object(outcome: WireOutcome) -> dict[str, Any]:
    trial = outcome.trial
    return {
        "output": str(outcome.output),
        "bytes": outcome.output.stat().st_size,
        "seconds": round(outcome.seconds, 3),
        "target": "wire",
        "archive_bytes": trial.archive_bytes,
        "gguf_bytes": trial.gguf_bytes,
        "bits_per_weight": round(8 * trial.archive_bytes / outcome.weights, 4),
        "scale": trial.scale,
        "predicted_kl": trial.result.loss,
        "trials": outcome.trials,
        "trellis": trial.result.plan.metadata["edgepack.wire.trellis"].value,
        "raised_rows": trial.result.raised_rows,
        "tensors": [
            {
                "name": tensor.info.name,
                "shape": list(tensor.info.shape),
                "source_type": tensor.rows.dtype,
                "type": tensor.info.type.name,
                "bytes": tensor.info.nbytes,
            }
            for tensor in trial.result.plan.tensors
        ],
    }


def _print(outcome: WireOutcome, host: str) -> None:
    trial = outcome.trial
    raised = sum(trial.result.raised_rows.values())
    if raised:
        note(f"{raised} rows have integers beyond what {host} holds: their groups got larger steps")
    note(
        f"{outcome.output}: ships as {format_size(trial.archive_bytes)}"
        f" ({8 * trial.archive_bytes / outcome.weights:.2f} bits a weight), runs as {format_size(trial.gguf_bytes)}"
        f" of {host}; predicted KL of the weights {trial.result.loss:.4f};"
        f" {outcome.trials} tries in {format_duration(outcome.seconds)}"
    )
