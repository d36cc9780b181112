"""`edgepack run`: one completion, one answer, or a chat; the model is `edgepack.load`'s."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepack.cli.model_options import opening_options, prepared, sampling, sampling_options
from edgepack.cli.output import json_option, note, print_json, say
from edgepack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.api.model import Model
    from edgepack.edge.chat.completion import Completion, CompletionStream
    from edgepack.edge.chat.conversation import Conversation
    from edgepack.edge.confidence.record import Verdict
    from edgepack.edge.llama.options import SamplingOptions


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--prompt", help="A question (where there is a chat template); - reads the input. Without it: a chat.")
@click.option("--raw", is_flag=True, help="Continue --prompt as it stands.")
@click.option("--chat", is_flag=True, help="Ask --prompt through the chat template, or fail where there is none.")
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
@click.option("--confidence", is_flag=True, help="Say how likely the answer to --prompt is right (see calibrate).")
@click.option("--verbose", is_flag=True, help="In a chat: tokens/s and context use after each answer.")
@click.option(
    "--image",
    "images",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="An image that --prompt is about: PNG, JPEG, GIF or BMP; repeatable.",
)
@click.option(
    "--mmproj",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The projector for --image.  [default: the archive's own]",
)
@opening_options
@sampling_options
@json_option
def command(file: Path, **values: Any) -> None:
    """Run the model in FILE, a GGUF or an archive (which is installed first).

    With --prompt it answers once: a question where the model has a chat template, else the text is continued. Without
    it you chat.
    """
    chosen = sampling(values)
    if values["confidence"] and values["from_archive"] == "auto":
        values["from_archive"] = "never"  # what a file says of its confidence is checked against an installed one
    with prepared(file, values, values["template"]) as model:
        if values["raw"] and (values["chat"] or values["prompt"] is None):
            raise UsageError("--raw: expected --prompt and no --chat with it")
        wants_chat = not values["raw"] and (values["chat"] or values["prompt"] is None or model.can_chat)
        if values["as_json"] and values["prompt"] is None:
            raise UsageError("--json: expected --prompt with it")
        if values["images"]:
            _check_images(model, values)
        if values["confidence"]:
            chosen = _with_chances(model, values, chosen, chat=wants_chat)
        if wants_chat:  # whatever can be wrong with the template is told before a large model is loaded
            model.chat_template()
        model.open()
        if wants_chat:
            _chat(model, values, chosen)
        else:
            _complete(model, values, chosen)


def _with_chances(model: Model, values: Mapping[str, Any], chosen: SamplingOptions, *, chat: bool) -> SamplingOptions:
    """Whatever can be wrong with the calibration is told before a large model is loaded."""
    from edgepack.edge.confidence.features import TOLD

    if values["prompt"] is None:
        raise UsageError("--confidence: expected --prompt with it")
    model.calibration(chat=chat)
    return replace(chosen, chances=TOLD)


def _check_images(model: Model, values: Mapping[str, Any]) -> None:
    """Whatever can be wrong with images is told before a large model is loaded."""
    if values["prompt"] is None:
        raise UsageError("--image: expected --prompt with it, the question about the image")
    model.check_sight(values["images"])


def _prompt(text: str) -> str:
    return sys.stdin.read() if text == "-" else text


def _show(text: str) -> None:
    """A piece of text on stdout; on a terminal without control characters."""
    say(text, nl=False)
    sys.stdout.flush()


def _complete(model: Model, values: Mapping[str, Any], chosen: SamplingOptions) -> None:
    prompt, as_json = _prompt(values["prompt"]), values["as_json"]
    if not as_json:
        _show(prompt)
    answer = model.complete(
        prompt, max_tokens=values["max_tokens"], stop=values["stops"], sampling=chosen,
        context_shift=values["ctx_shift"], images=values["images"], stream=True,
    )  # fmt: skip
    _tell(model, prompt, answer, values, chat=False)
    if model.abort:
        raise KeyboardInterrupt


def _tell(model: Model, prompt: str, answer: CompletionStream, values: Mapping[str, Any], *, chat: bool) -> None:
    """Show the answer as it comes, and what it took; Ctrl-C ends it where it is."""
    from edgepack.edge.llama.interrupt import ctrl_c_sets

    with ctrl_c_sets(model.abort), closing(answer):
        for piece in answer:
            if not values["as_json"]:
                _show(piece)
    verdict = model.verdict(answer.result, chat=chat) if values["confidence"] else None
    _report(prompt, answer.result, model.load_seconds, verdict, as_json=values["as_json"])


def _chat(model: Model, values: Mapping[str, Any], chosen: SamplingOptions) -> None:
    from edgepack.cli.chat.session import converse

    conversation = model.conversation(
        chosen, system=values["system"], max_tokens=values["max_tokens"],
        stop=values["stops"], context_shift=values["ctx_shift"],
    )  # fmt: skip
    if values["prompt_cache"] is not None:
        _use_prompt_cache(conversation, values["prompt_cache"])
    if values["prompt"] is None:
        converse(conversation, verbose=values["verbose"])
    else:
        _ask(model, values, chosen)


def _use_prompt_cache(conversation: Conversation, path: Path) -> None:
    from edgepack.edge.chat.prompt_cache import load_prompt_state, save_prompt_state

    if not conversation.system:
        raise UsageError("--prompt-cache: expected --system with it, nothing else is the same at each start")
    if load_prompt_state(conversation.model, path):
        return
    save_prompt_state(conversation.model, conversation.beginning(), path)
    note(f"(the evaluated system prompt is kept in {path})")


def _ask(model: Model, values: Mapping[str, Any], chosen: SamplingOptions) -> None:
    """One question, one answer."""
    question = _prompt(values["prompt"])
    system = [{"role": "system", "content": values["system"]}] if values["system"] else []
    answer = model.chat(
        [*system, {"role": "user", "content": question}], max_tokens=values["max_tokens"], stop=values["stops"],
        sampling=chosen, context_shift=values["ctx_shift"], images=values["images"], stream=True,
    )  # fmt: skip
    _tell(model, question, answer, values, chat=True)
    if model.abort:
        raise KeyboardInterrupt


def _report(prompt: str, result: Completion, load_seconds: float, verdict: Verdict | None, *, as_json: bool) -> None:
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
                **({} if verdict is None else verdict.json()),
            }
        )
        return
    say()
    note(
        f"{result.tokens} tokens, {result.tokens_per_second:.1f} tokens/s; loaded in {load_seconds:.2f} s, "
        f"first token after {result.first_token_seconds:.2f} s"
    )
    if verdict is not None:
        note(str(verdict))
