"""`edgepack run`: one completion, or a chat; how models are opened and run is left to `edge`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepack.cli.output import json_option, note, print_json, terminal_progress
from edgepack.errors import TemplateError

if TYPE_CHECKING:
    from edgepack.edge.completion import Completion


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--prompt", help="Text to continue. Without it: a chat, where the model has a chat template.")
@click.option("--max-tokens", type=click.IntRange(min=-1), default=-1, help="Stop after these; -1: the context's end.")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.8, show_default=True, help="0: always the best.")
@click.option("--ctx", type=click.IntRange(min=1), help="Tokens of context.  [default: the model's, at most 4096]")
@click.option("--seed", type=int, default=-1, help="Of the random draw; -1: a new one each time.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: every core]")
@json_option
def command(
    file: Path,
    prompt: str | None,
    max_tokens: int,
    temperature: float,
    ctx: int | None,
    seed: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Run the model in FILE, a GGUF: continue a prompt."""
    from edgepack.edge.completion import complete, default_context
    from edgepack.edge.model_file import prepare
    from edgepack.edge.runtime import LoadedModel
    from edgepack.edge.runtime_options import RuntimeOptions, SamplingOptions

    source = prepare(file, progress=terminal_progress, note=note)
    if prompt is None:
        raise TemplateError(f"{file}: no prompt was given; say --prompt TEXT")
    options = RuntimeOptions(n_ctx=ctx or default_context(source.header), threads=threads or 0, max_outputs=1)
    started = time.perf_counter()
    with LoadedModel(source.path, options) as model:
        load_seconds = time.perf_counter() - started
        sampling = SamplingOptions(temperature=temperature, seed=seed)
        if not as_json:
            click.echo(prompt, nl=False)
        show = (lambda _text: None) if as_json else (lambda text: click.echo(text, nl=False))
        result = complete(model, prompt, sampling, max_tokens, show)
    _report(prompt, result, load_seconds, as_json=as_json)


def _report(prompt: str, result: Completion, load_seconds: float, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "prompt": prompt,
                "text": result.text,
                "tokens": result.tokens,
                "prompt_tokens": result.prompt_tokens,
                "tokens_per_second": result.tokens_per_second,
                "load_seconds": load_seconds,
                "first_token_seconds": result.first_token_seconds,
            }
        )
        return
    click.echo()
    note(
        f"{result.tokens} tokens, {result.tokens_per_second:.1f} tokens/s; loaded in {load_seconds:.2f} s, "
        f"first token after {result.first_token_seconds:.2f} s"
    )
