"""`edgepack tune`: a quantised GGUF moves towards its original at the same size; the work is `edgepack.tune`'s."""

from __future__ import annotations

from pathlib import Path

import click

from edgepack.cli.output import force_option, json_option, note, print_json, terminal_progress
from edgepack.cli.place import Place
from edgepack.quantities import format_duration, format_size

_PATH = click.Path(path_type=Path)


@click.command("tune", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", type=_PATH)
@click.option("--reference", type=Place(), required=True, help="What FILE was made of: a folder, its URL, or a GGUF.")
@click.option("--text", type=_PATH, required=True, help="UTF-8 text to learn from; a tenth of it is held out.")
@click.option("-o", "--output", type=_PATH, required=True, help="The tuned GGUF.")
@click.option("--steps", type=click.IntRange(0), help="How many steps.")
@click.option("--minutes", type=float, help="Or as many as fit into this time.  [default: 10]")
@click.option("--rate", type=float, default=1.0, show_default=True, help="A factor on all learning rates.")
@click.option(
    "--part",
    "parts",
    multiple=True,
    metavar="PART",
    help="What is moved: vectors, rows, steps, codes or integers; repeatable. Default: what measured best.",
)
@click.option(
    "--moves",
    type=click.Choice(("ste", "gumbel")),
    default="ste",
    show_default=True,
    help="How integers move: straight-through, or by a Gumbel relaxation.",
)
@click.option("--device", default="cpu", show_default=True, metavar="D", help="Torch device.")
@click.option("--ctx", type=click.IntRange(2), default=256, show_default=True, help="Tokens of a sequence.")
@click.option(
    "--sequences",
    type=click.IntRange(2),
    default=512,
    show_default=True,
    help="At most this many, spread evenly over the text.",
)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Of their order.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run of the same; --rate may be another.")
@click.option("--pre", metavar="NAME", help="The pre-tokenizer's name, where its structure is not known.")
@force_option
@json_option
def command(
    file: Path, reference: Path | str, text: Path, output: Path, steps: int | None, minutes: float | None, rate: float,
    parts: tuple[str, ...], moves: str, device: str, ctx: int, sequences: int, seed: int, resume: bool, pre: str | None,
    force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Tune what costs no bytes in FILE, a quantised GGUF, until it says what its original says.

    Norms, biases, steps and integers move; types and size stay. What is not better on held-out text is not written.
    """
    from edgepack.api.tuning import tune

    result = tune(
        file, reference, text, output, steps=steps, minutes=minutes, rate=rate, parts=parts or None,
        moves=moves, device=device, ctx=ctx, sequences=sequences, seed=seed, resume=resume, force=force, pre=pre,
        progress=terminal_progress, note=note,
    )  # fmt: skip
    tuned = result.tuned
    for line in tuned.notes:
        note(line)
    if as_json:
        print_json(result.json())
        return
    note(
        f"{tuned.output}: {format_size(tuned.bytes)}, held-out divergence {tuned.before:.5f} → {tuned.after:.5f}"
        f" after {tuned.best_step} of {tuned.steps} steps, in {format_duration(tuned.seconds)}"
    )
