"""`edgepack run`: one completion, one answer, or a chat; how models are opened and run is left to `edge`."""

from __future__ import annotations

import sys
import time
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepack.cli.model_options import open_wish, opening_options, prepared, sampling, sampling_options
from edgepack.cli.output import json_option, note, print_json
from edgepack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.edge.chat.completion import Completion
    from edgepack.edge.chat.template import JinjaTemplate, NamedTemplate
    from edgepack.edge.install.model_file import ModelFile
    from edgepack.edge.llama.runtime import LoadedModel


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--prompt", help="Text to continue; - reads it from the input. Without it: a chat.")
@click.option("--chat", is_flag=True, help="Ask --prompt as a question, through the chat template.")
@click.option("--system", default="", help="A system message for the chat.")
@click.option("--template", metavar="NAME|FILE", help="Chat template: one that llama.cpp knows, or a Jinja file.")
@click.option("--max-tokens", "-n", type=click.IntRange(min=-1), default=-1, help="Stop after these.  [default: none]")
@click.option("--stop", "stops", multiple=True, help="Stop at this text; repeatable.")
@click.option("--ctx-shift", is_flag=True, help="Forget the oldest text when the context is full, instead of ending.")
@click.option(
    "--from-archive", type=click.Choice(["auto", "always", "never"]), default="auto", show_default=True,
    help="Decode an archive's model into memory instead of installing it; auto: when the disk has no room for it.",
)  # fmt: skip
@click.option("--prompt-cache", type=click.Path(path_type=Path), help="Keep the evaluated system prompt in this file.")
@opening_options
@sampling_options
@json_option
def command(file: Path, **values: Any) -> None:
    """Run the model in FILE, a GGUF or an archive (which is installed first).

    With --prompt the text is continued; without it you chat, where the model has a chat template.
    """
    from edgepack.edge.fit.opening import runtime_options
    from edgepack.edge.llama.runtime import LoadedModel

    chosen = sampling(values)
    source = prepared(file, values)
    wants_chat = values["chat"] or values["prompt"] is None
    if values["as_json"] and values["prompt"] is None:
        raise UsageError("--json: expected --prompt with it")
    # Whatever can be wrong with the template is told before a large model is loaded.
    template = _template(source, values["template"], file) if wants_chat else None
    with nullcontext() if template is None else closing(template):
        options = runtime_options(source.header, open_wish(source, values))
        started = time.perf_counter()
        with LoadedModel(source.path, options) as model:
            load_seconds = time.perf_counter() - started
            if template is None:
                _complete(model, source, values, chosen, load_seconds)
            else:
                _chat(model, template, values, chosen, load_seconds)


def _template(source: ModelFile, wanted: str | None, file: Path) -> JinjaTemplate | NamedTemplate:
    from edgepack.edge.chat.template import choose_template, special_tokens

    return choose_template(wanted, source.template, special_tokens(source.header), str(file))


def _prompt(text: str) -> str:
    return sys.stdin.read() if text == "-" else text


def _show(text: str) -> None:
    click.echo(text, nl=False)
    sys.stdout.flush()


def _complete(
    model: LoadedModel, source: ModelFile, values: Mapping[str, Any], chosen: Any, load_seconds: float
) -> None:
    from edgepack.edge.chat.completion import complete
    from edgepack.edge.llama.interrupt import ctrl_c_sets

    prompt, as_json = _prompt(values["prompt"]), values["as_json"]
    if not as_json:
        _show(prompt)
    show = (lambda _text: None) if as_json else _show
    with ctrl_c_sets(model.abort):
        result = complete(
            model, prompt, chosen, values["max_tokens"], show,
            stops=values["stops"], context_shift=values["ctx_shift"],
        )  # fmt: skip
    _report(prompt, result, load_seconds, as_json=as_json)
    if source.template is not None and not as_json:
        note("(the model has a chat template: --chat asks the prompt as a question)")
    if model.abort:
        raise KeyboardInterrupt


def _chat(
    model: LoadedModel,
    template: JinjaTemplate | NamedTemplate,
    values: Mapping[str, Any],
    chosen: Any,
    load_seconds: float,
) -> None:
    from edgepack.cli.chat_screen import converse
    from edgepack.edge.chat.conversation import Conversation

    conversation = Conversation(
        model, template, chosen, values["system"], values["max_tokens"], values["ctx_shift"], values["stops"]
    )
    if values["prompt_cache"] is not None:
        _use_prompt_cache(conversation, values["prompt_cache"])
    if values["prompt"] is None:
        converse(conversation)
    else:
        _ask(conversation, _prompt(values["prompt"]), load_seconds, as_json=values["as_json"])


def _use_prompt_cache(conversation: Any, path: Path) -> None:
    from edgepack.edge.chat.prompt_cache import load_prompt_state, save_prompt_state

    if not conversation.system:
        raise UsageError("--prompt-cache: expected --system with it, nothing else is the same at each start")
    if load_prompt_state(conversation.model, path):
        return
    save_prompt_state(conversation.model, conversation.beginning(), path)
    note(f"(the evaluated system prompt is kept in {path})")


def _ask(conversation: Any, question: str, load_seconds: float, *, as_json: bool) -> None:
    """One question, one answer."""
    from edgepack.edge.chat.completion import complete
    from edgepack.edge.llama.interrupt import ctrl_c_sets

    show = (lambda _text: None) if as_json else _show
    prompt = conversation.prompt_for(question)
    model = conversation.model
    with ctrl_c_sets(model.abort):
        result = complete(
            model, prompt, conversation.sampling, conversation.max_tokens, show, stops=conversation.all_stops
        )
    _report(question, result, load_seconds, as_json=as_json)
    if model.abort:
        raise KeyboardInterrupt


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
