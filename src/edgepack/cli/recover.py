"""`edgepack recover`: an adapter that gives back what compression lost; the work is `edgepack.recover`'s."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from edgepack.cli.adapting_options import PATH, adapting_options, told_shortly
from edgepack.cli.output import note, terminal_progress
from edgepack.cli.place import Place
from edgepack.quantities import format_duration, format_size

if TYPE_CHECKING:
    from pathlib import Path


@click.command("recover", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", type=PATH)
@click.option("--reference", type=Place(), required=True, help="What FILE was made of: a folder or a GGUF.")
@click.option("--text", type=PATH, required=True, help="UTF-8 text: examples to learn from, and pieces to measure on.")
@click.option("--teacher", type=Place(), help="Whose answers are learnt.  [default: the reference's]")
@click.option(
    "--targets", type=click.Choice(["original", "text"]), default="original", show_default=True,
    help="Learn what the original says of the text, or the text.",
)  # fmt: skip
@click.option("--answers", type=PATH, help="JSONL of questions and better answers, to learn instead of the text.")
@click.option("--hardest", type=click.IntRange(1), help="How many examples are learnt.  [default: 2 % of them]")
@click.option("--imatrix", type=PATH, help="Importance matrix that the larger type is made with.")
@adapting_options(64, "the rank", "8e-7", 4, 256)
def command(
    file: Path, reference: Path | str, text: Path, output: Path | None, dry_run: bool, as_json: bool, **options: Any
) -> None:
    """Train a LoRA on the examples that compression made hardest, and hold it against a larger type of equal bytes.

    FILE is the compressed GGUF. Its weights stay as they are; the adapter is a GGUF that run, serve and validate apply.
    """
    from edgepack.api.recover import recover

    result = recover(
        file, reference, text, output, dry_run=dry_run, progress=terminal_progress, note=note, **options
    )  # fmt: skip
    if told_shortly(result, as_json=as_json):
        return
    found = result.recovered
    assert found is not None
    for line in found.notes:
        note(line)
    note(
        f"{result.output}: {format_size(found.bytes)} of adapter, KL on unseen text {found.before.kl:.5f} →"
        f" {found.after.kl:.5f} ({100 * found.regained:.1f} % regained), in {format_duration(found.seconds)}"
    )
    if found.verdict is not None:
        note(found.verdict.line)
