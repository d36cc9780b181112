"""The options of `edgepack export` by what they decide: the source, types, the output.

What they mean for an export is left to `edgepack.pipeline.export`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepack.cli.output import SIZE
from edgepack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgepack.quant.types.choice import Overrides

    Decorated = Callable[..., Any]

_PATH = click.Path(path_type=Path)


def _apply(function: Decorated, options: list[Callable[[Decorated], Decorated]]) -> Decorated:
    for option in reversed(options):
        function = option(function)
    return function


def source_options(function: Decorated) -> Decorated:
    """What is read, beside the model itself."""
    return _apply(function, [
        click.option("--pre", metavar="NAME", help="The pre-tokenizer's name, where its structure is not known."),
        click.option("--adapter", type=_PATH, metavar="DIR", help="A PEFT LoRA for MODEL."),
        click.option("--adapter-mode", type=click.Choice(["merge", "separate"]), default="merge", show_default=True),
        click.option("--allow-requantize", is_flag=True, help="Quantise a GGUF's quantised tensors again."),
        click.option("--imatrix", type=_PATH, metavar="FILE", help="An importance matrix of MODEL."),
        click.option("--calibration", type=_PATH, metavar="TEXT", help="Collect one over this text."),
    ])  # fmt: skip


def type_options(function: Decorated) -> Decorated:
    """Which tensor becomes what."""
    return _apply(function, [
        click.option("--tensor-type", "tensor_types", multiple=True, metavar="REGEX=TYPE",
                     help="Type of matching tensors."),
        click.option("--output-type", metavar="TYPE", help="Type of output.weight (and of tied embeddings)."),
        click.option("--embedding-type", metavar="TYPE", help="Type of token_embd.weight."),
        click.option("--pure", is_flag=True, help="Every matrix gets the target's own type: no mixture."),
        click.option("--tensor-codec", "tensor_codecs", multiple=True, metavar="REGEX=CODEC",
                     help="For edge targets: codec of matching tensors, such as 'attn_.*=vptq3'."),
        click.option("--skip-harmful", is_flag=True,
                     help="For edge targets: drop a chain's stages that do not help."),
    ])  # fmt: skip


def pass_options(function: Decorated) -> Decorated:
    """What is done to the weights before they are written."""
    return _apply(function, [
        click.option("--recipe", type=_PATH, metavar="TOML", help="Passes on the weights, in order."),
        click.option("--pass", "passes", multiple=True, metavar="NAME:KEY=VALUE,…",
                     help="One pass, such as prune:method=wanda,sparsity=0.6, awq, gptq, lowrank:rank=64; repeatable."),
        click.option("--device", default="cpu", show_default=True, metavar="D", help="Torch device of the passes."),
    ])  # fmt: skip


def gate_options(function: Decorated) -> Decorated:
    """What the file must reach when it is held against its original."""
    return _apply(function, [
        click.option("--validate", is_flag=True, help="Hold the file against the original at the end."),
        click.option("--min-agreement", type=float, metavar="A",
                     help="Least share of equal first choices; without --target the smallest type that reaches it."),
        click.option("--max-kl", type=float, metavar="NATS", help="Largest mean KL divergence; likewise."),
        click.option("--text", type=_PATH, metavar="FILE", help="Text to score; default the model's own samples."),
        click.option("--chunks", type=click.IntRange(1), help="Score only the first N chunks."),
    ])  # fmt: skip


def output_options(function: Decorated) -> Decorated:
    """What is written, and how."""
    return _apply(function, [
        click.option("-o", "--output", type=_PATH, help="Default: by the GGUF naming convention, here."),
        click.option("--max-size", type=SIZE, metavar="S", help="Without --target: the largest type that fits."),
        click.option("--pack", is_flag=True, help="Write an archive instead; -o and --max-size mean the archive."),
        click.option("--shard-size", type=SIZE, metavar="S", help="Split into files of at most this size."),
        click.option("--resume", is_flag=True, help="Go on with an interrupted export of the same plan."),
        click.option("--dry-run", is_flag=True, help="Print the plan, exact to the byte; write nothing."),
        click.option("--threads", type=click.IntRange(1), help="Default: all processors."),
    ])  # fmt: skip


def parse_overrides(
    tensor_types: tuple[str, ...], output_type: str | None, embedding_type: str | None, *, pure: bool
) -> Overrides:
    """What the type options say.

    Raises:
        UsageError: an expression or a type that is none.
    """
    from edgepack.quant.types.choice import Overrides
    from edgepack.quant.types.targets import find_type

    patterns = []
    for text in tensor_types:
        pattern, equals, kind = text.rpartition("=")
        if not equals:
            raise UsageError(f"--tensor-type '{text}': expected REGEX=TYPE, such as ffn_down=q6_k")
        try:
            re.compile(pattern)
        except re.error as error:
            raise UsageError(f"--tensor-type '{text}': not a regular expression: {error}") from error
        patterns.append((pattern, find_type(kind)))
    return Overrides(
        tuple(patterns),
        output=find_type(output_type) if output_type else None,
        embedding=find_type(embedding_type) if embedding_type else None,
        pure=pure,
    )
