"""`edgepack certify`: a file measured, and the proof put inside it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepack.cli.output import force_option, json_option, note, print_json, terminal_progress
from edgepack.cli.place import Place
from edgepack.cli.scoring_options import read_scoring, scoring_options

if TYPE_CHECKING:
    from edgepack.pipeline.certify import Certified

_PATH = click.Path(path_type=Path)


@click.command("certify")
@click.argument("candidate", type=_PATH)
@click.option(
    "--reference", type=Place(), required=True, help="The original: a Hugging Face folder, its URL, or a GGUF."
)
@click.option("-o", "--output", type=_PATH, help="An archive [CANDIDATE-certified.edgepack], or a GGUF.")
@click.option("--stored-tokens", type=click.IntRange(1), default=4096, show_default=True,
              help="Positions whose predictions are stored for devices to replay.")  # fmt: skip
@scoring_options
@force_option
@json_option
def command(
    candidate: Path,
    reference: Path | str,
    output: Path | None,
    stored_tokens: int,
    text_path: Path | None,
    force: bool,
    as_json: bool,
    **scoring: Any,
) -> None:
    """Measure CANDIDATE and pack it with the figures and with answers that any machine can replay.

    On the device, `edgepack validate` on the archive replays them offline. Sign the archive after this.
    """
    from edgepack.api.fidelity import certify

    result = certify(
        candidate, reference, output, text=text_path, stored_tokens=stored_tokens, force=force,
        scoring=read_scoring(scoring, floor=True), progress=terminal_progress,
    )  # fmt: skip
    if as_json:
        print_json({**asdict(result), "output": str(result.output)})
    else:
        _print(result)


def _print(result: Certified) -> None:
    from edgepack.edge.fidelity.outcome import percent
    from edgepack.quantities import format_size

    low, high = result.figures["top1_interval"]
    agreement = percent(result.figures["top1_agreement"])
    note(f"{result.output}: {format_size(result.bytes)}, agreement {agreement} ({percent(low)} to {percent(high)})")
    share = 100 * result.certificate_bytes / result.base_logits_bytes
    note(
        f"certificate: {result.tokens} positions in {format_size(result.certificate_bytes)}, "
        f"{result.certificate_bytes / result.tokens:.1f} bytes each, {share:.2f} % of llama.cpp's base logits"
    )
