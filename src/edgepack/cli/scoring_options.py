"""Options of every command that scores text or judges by gates, each declared once.

`export` declares its own in `pipeline.export_options`' table, under the same spellings; a test holds the two together.
What the values mean is `pipeline.fidelity`'s and `edge.fidelity.validate`'s.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepack.cli.trust_options import trust_options

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edgepack.edge.fidelity.scoring import ScoringOptions

    Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_PATH = click.Path(path_type=Path)

text_option = click.option(
    "--text", "text_path", type=_PATH, metavar="FILE", help="UTF-8 text to score; default the reference's own samples."
)
ctx_option = click.option(
    "--ctx", type=int, help="Tokens in a chunk; default 512, less where the reference gains nothing."
)
chunks_option = click.option("--chunks", "max_chunks", type=click.IntRange(1), help="Score only the first N chunks.")
threads_option = click.option("--threads", type=int, default=0, help="Cores in all; default every core.")
gpu_option = click.option("--n-gpu-layers", type=int, default=0, help="llama.cpp's layers on the GPU; -1 is all.")
cluster_option = click.option(
    "--cluster", metavar="ADDRESS", help="Let a Ray cluster do the work, for the same bytes: auto, or HOST:PORT."
)
blockwise_option = click.option(
    "--blockwise/--whole",
    default=None,
    help="Load the original block by block; by default when it exceeds this machine's memory.",
)
min_agreement_option = click.option(
    "--min-agreement", type=float, help="Least share of equal first choices, such as 0.95."
)
report_option = click.option("--report", type=_PATH, metavar="HTML", help="Write a self-contained page.")

_SCORING: tuple[Decorator, ...] = (
    text_option,
    ctx_option,
    click.option("--stride", type=int, help="A sliding window of this step instead of chunks side by side."),
    chunks_option,
    threads_option,
    click.option("--kv-type", default="f32", show_default=True,
                 help="llama.cpp's cache; f32 measures the file alone, f16 as devices run it."),
    gpu_option,
    click.option("--floor/--no-floor", default=None,
                 help="Measure the original's own noise too; certificates do by default."),
    blockwise_option,
    click.option("--greedy", type=click.IntRange(0), default=0, show_default=True,
                 help="Beginnings that both models continue on their own, such as 8."),
)  # fmt: skip
_GATES: tuple[Decorator, ...] = (
    min_agreement_option,
    click.option("--max-kl", type=float, help="Largest mean KL divergence, in nats."),
    click.option("--max-perplexity-ratio", type=float, help="Largest perplexity over the reference's."),
    click.option("--max-mean-error", type=float,
                 help="Bar on the mean of the matrices' relative errors, such as 0.15."),
    click.option("--max-tensor-error", type=float, help="Bar on the largest of them, such as 0.25."),
)  # fmt: skip


def scoring_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """All that decides how text is scored: `text_path`, and the fields of `ScoringOptions`; whom to trust too."""
    return trust_options(_decorated(function, _SCORING))


def read_scoring(values: Mapping[str, Any], *, floor: bool = False) -> ScoringOptions:
    """The fields that `scoring_options` gives; the noise floor is measured where asked for, or by default `floor`."""
    from edgepack.edge.fidelity.scoring import ScoringOptions

    asked = values["floor"]
    rest = {name: value for name, value in values.items() if name != "trusted"}
    return ScoringOptions(**{**rest, "floor": floor if asked is None else asked}, trust=values["trusted"])


def gate_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The bars to clear: the fields of `Gates`."""
    return _decorated(function, _GATES)


def _decorated(function: Callable[..., Any], options: tuple[Decorator, ...]) -> Callable[..., Any]:
    for option in reversed(options):
        function = option(function)
    return function
