"""`edgepack teach`: documents learnt by an adapter; the work is `edgepack.teach`'s."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from edgepack.cli.adapting_options import PATH, adapting_options, told_shortly
from edgepack.cli.output import note, terminal_progress
from edgepack.cli.place import Place
from edgepack.quantities import format_duration, format_size

if TYPE_CHECKING:
    from pathlib import Path


@click.command("teach", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", type=Place())
@click.option("--documents", type=PATH, required=True, help="Folder of Markdown, text, HTML and PDF files.")
@click.option("--pairs", type=PATH, help="JSONL of questions and answers that are learnt too.")
@click.option("--questions", type=PATH, help="JSONL of held-out questions of your own, as evaluate reads them.")
@click.option("--other", type=PATH, help="UTF-8 text of what must stay.  [default: what the model writes itself]")
@click.option("--target", default="gguf-q8", show_default=True, help="Of the export, where MODEL is a folder.")
@click.option("--ask", type=click.IntRange(1), default=100, show_default=True, help="Held-out questions at most.")
@click.option("--replay", type=click.IntRange(0), default=64, show_default=True, help="Pieces of other text learnt.")
@adapting_options(16, "16", "auto", 2, 512)
def command(
    model: Path | str,
    documents: Path,
    output: Path | None,
    alpha: float | None,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a LoRA on a folder of documents, with a test of what is known and what was forgotten.

    MODEL is a GGUF, or a Hugging Face folder that is exported first. Held-out questions are written before training.
    """
    from edgepack.api.teach import teach

    result = teach(
        model, documents, output, alpha=16.0 if alpha is None else alpha, dry_run=dry_run, progress=terminal_progress,
        note=note, **options,
    )  # fmt: skip
    if told_shortly(result, as_json=as_json):
        return
    taught = result.taught
    assert taught is not None
    for line in taught.notes:
        note(line)
    note(
        f"{result.output}: {format_size(taught.bytes)} of adapter from {taught.examples} examples, in"
        f" {format_duration(taught.seconds)}"
    )
    for kind, answers in taught.before.likely.items():
        held = taught.before.against(taught.after, kind)
        note(
            f"{len(answers)} questions ({kind}): right {100 * held.reference:.1f} → {100 * held.candidate:.1f} %, by"
            f" chance {100 * taught.before.chance[kind]:.0f} %"
        )
    note(
        f"other text: perplexity {100 * taught.forgotten:+.2f} %, equal first choices"
        f" {100 * taught.other.agreement:.1f} %"
    )
