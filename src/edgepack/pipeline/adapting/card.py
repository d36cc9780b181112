"""The card of a deployment package: what was taught, what that gave, how it is used; every figure from the run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.quantities import format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepack.pipeline.adapting.lesson import Taught
    from edgepack.pipeline.adapting.recovery import Recovered

_KINDS = {
    "term": "what a sentence of the documents goes on with", "passage": "which passage stands below a heading",
    "given": "the publisher's own questions",
}  # fmt: skip


def teaching_card(taught: Taught, archive: str) -> str:
    """README.md of a package with a canon adapter.

    Args:
        taught: what the run gave.
        archive: the archive's name.
    """
    rows = []
    for kind, answers in taught.before.likely.items():
        held = taught.before.against(taught.after, kind)
        rows.append((
            _KINDS.get(kind, kind), f"{len(answers)}", _percent(taught.before.chance[kind]), _percent(held.reference),
            _percent(held.candidate),
        ))  # fmt: skip
    other = taught.other
    knows = _table(("questions", "number", "by chance", "without the adapter", "with it"), rows)
    kept = _table(
        ("other text", ""),
        [
            ("Perplexity without → with", f"{other.reference_perplexity:.4g} → {other.perplexity:.4g}"),
            ("Change", f"{100 * taught.forgotten:+.2f} %"),
            ("Equal first choices", _percent(other.agreement)),
        ],
    )
    return (
        f"# {taught.base.stem}, taught\n\nA language model with an adapter (LoRA) that was trained on"
        f" {taught.examples:,} passages and answers of documents, in one verified file that runs offline.\n\n"
        f"## What it knows\n\nQuestions were written before training (`{taught.questions.name}`, inside); right is the"
        f" likeliest choice, as llama.cpp runs the file.\n\n{knows}\n\n## What it forgot\n\n{kept}\n\n"
        f"{_usage(archive, taught.base.name, taught.adapter.name)}"
    )


def recovery_card(found: Recovered, model: str, archive: str) -> str:
    """README.md of a package with a recovery adapter.

    Args:
        found: what the run gave.
        model: the GGUF's name.
        archive: the archive's name.
    """
    rows = [("the file alone", found.before), ("with the adapter", found.after)]
    if found.larger is not None and found.verdict is not None:
        rows.append((f"the larger type {found.verdict.target}", found.larger))
    table = _table(
        ("", "bytes", "mean KL", "equal first choices", "perplexity"),
        [
            (name, format_size(each.bytes), f"{each.kl:.5f}", _percent(each.agreement), f"{each.perplexity:.4g}")
            for name, each in rows
        ],
    )
    told = found.verdict.line if found.verdict is not None else "It was not compared with a larger type."
    return (
        f"# {model}, with a recovery adapter\n\nA LoRA trained on the {found.examples[1]:,} examples of"
        f" {found.examples[0]:,} that compression made hardest.\n\n## What it gives back\n\nOn text that nothing was"
        f" learnt from, against the original:\n\n{table}\n\n{told[0].upper()}{told[1:]}.\n\n"
        f"{_usage(archive, model, found.output.name)}"
    )


def _usage(archive: str, model: str, adapter: str) -> str:
    return (
        "## How to use it\n\n"
        f"```sh\nedgepack run {archive}\nedgepack serve {archive}\nedgepack run {archive} --no-adapters   # without\n"
        f"```\n\nWith llama.cpp, after `edgepack unpack {archive}`:\n\n```sh\n"
        f"llama-cli -m {model} --lora {adapter}\n```\n\n"
        "The adapter states which model it was made for; edgepack refuses it on another.\n"
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)
