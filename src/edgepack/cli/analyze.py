"""`edgepack analyze`: how many directions a model's weights and activations really use.

The work is `edgepack.analyze`'s.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepack.cli.output import force_option, json_option, note, print_json, say, terminal_progress
from edgepack.cli.place import Place

if TYPE_CHECKING:
    from edgepack.quant.passes.lowrank.analysis import ModelAnalysis
    from edgepack.quant.passes.lowrank.spectrum import Spectrum

_PATH = click.Path(path_type=Path)


@click.command("analyze", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", type=Place())
@click.option("--text", type=_PATH, metavar="FILE", help="Measure activations over this text.")
@click.option("--own-samples", is_flag=True, help="Measure activations over text that the model writes itself.")
@click.option("--sequences", type=click.IntRange(1), default=32, show_default=True, help="Pieces of text.")
@click.option("--length", type=click.IntRange(2), help="Tokens in a piece. Default: 512, or the model's context.")
@click.option("--device", default="cpu", show_default=True, metavar="D", help="Torch device.")
@click.option("--report", type=_PATH, metavar="OUT.html", help="Write a page with plots.")
@click.option("-o", "--output", type=_PATH, metavar="OUT.json", help="Write all figures.")
@click.option("--architecture", is_flag=True, help="Print the model's shape, memory and sizes; read no weights.")
@force_option
@json_option
def command(
    model: Path | str,
    text: Path | None,
    own_samples: bool,
    sequences: int,
    length: int | None,
    device: str,
    report: Path | None,
    output: Path | None,
    force: bool,
    architecture: bool,
    as_json: bool,
) -> None:
    """Print spectra of MODEL's weights (a Hugging Face folder, its URL, or a GGUF), and of its activations over a text.

    With --architecture, print what MODEL is instead: its parts, memory by context length, targets and their sizes.
    """
    if architecture:
        _architecture(model, as_json=as_json)
        return
    from edgepack.api.analysis import analyze
    from edgepack.api.places import files_of
    from edgepack.files.claim import check_output
    from edgepack.files.output import write_output

    inputs = files_of(model, text)
    for path in (report, output):
        if path is not None:
            check_output(path, inputs=inputs, force=force)
    result = analyze(
        model, text=text, own_samples=own_samples, sequences=sequences, length=length, device=device,
        progress=terminal_progress,
    )  # fmt: skip
    found = result.found
    if output is not None:
        write_output(output, json.dumps(result.json(), indent=1).encode(), inputs=inputs, force=force)
    if report is not None:
        write_output(report, result.html().encode(), inputs=inputs, force=force)
        note(f"{report}: spectra of {len(found.weights)} weights and {len(found.activations)} blocks")
    if as_json:
        print_json(result.json())
    else:
        _print(found)


def _architecture(model: Path | str, *, as_json: bool) -> None:
    from edgepack.api.analysis import architecture_of

    found = architecture_of(model)
    if as_json:
        print_json(found.json())
        return
    from edgepack.cli.architecture import lines

    say("\n".join(lines(found)))


def _print(found: ModelAnalysis) -> None:
    """Two tables on stdout."""
    head = f"{'eff. rank':>10} {'of':>6} {'k 90%':>6} {'95%':>6} {'99%':>6} {'at k=9':>8} {'k=22':>8}"
    width = max((len(layer.name) for layer in found.weights), default=20)
    say(f"{'weight (centred)':<{width}} {head} {'× at 95%':>9} {'4-bit err':>10}")
    for layer in found.weights:
        error = "" if layer.sensitivity is None else f"{layer.sensitivity:10.5f}"
        compression = layer.as_json()["compression"]["95%"]
        say(f"{layer.name:<{width}} {_line(layer.spectra['centred'])} {compression:9.2f} {error:>10}")
    _print_summary(found)
    for block in found.activations:
        say(f"\n{f'activations after block {block.block}':<{width}} {head}")
        for name, spectrum in block.spectra.items():
            say(f"{name:<{width}} {_line(spectrum)}")


def _print_summary(found: ModelAnalysis) -> None:
    from edgepack.quantities import format_size

    if (summary := found.summary) is None:
        return
    say(
        f"\ndegrees of freedom: mean {summary.mean_df:.1f}, median {summary.median_df:.1f} "
        f"({summary.mean_share:.0%} and {summary.median_share:.0%} of full rank), {summary.matrices} matrices"
    )
    say(f"recommended rank: {summary.meaning}")
    say(f"\ndense, F16: {format_size(summary.dense_bytes)}")
    say(f"{'k':>6} {'factors':>10} {'of dense':>9} {'variance':>9}")
    for size in summary.sizes:
        mark = "  recommended" if size.k == summary.recommended_k else ""
        say(f"{size.k:>6} {format_size(size.bytes):>10} {size.ratio:>9.0%} {size.kept:>9.1%}{mark}")


def _line(spectrum: Spectrum) -> str:
    ks = " ".join(f"{k:6d}" for k in spectrum.k_for.values())
    shares = " ".join(f"{share:8.1%}" for share in spectrum.variance_at.values())
    return f"{spectrum.effective_rank:10.1f} {spectrum.dimensions:6d} {ks} {shares}"
