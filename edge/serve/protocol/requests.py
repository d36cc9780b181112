"""One function a path: what a client sent becomes what the engine is asked, or an error that names the field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepack.edge.serve.protocol import fields
from edgepack.edge.serve.protocol.errors import RequestError
from edgepack.edge.serve.protocol.messages import check_content, check_messages, check_tools
from edgepack.edge.serve.protocol.sampling import (
    check_bias,
    check_choices,
    check_form,
    check_length,
    check_probabilities,
    check_sampling,
    check_stops,
)
from edgepack.edge.serve.protocol.schema import check_schema, schema_as_grammar

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgepack.edge.serve.protocol.facts import ServedFacts

    Check = Callable[[dict[str, Any], ServedFacts], None]

_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_KINDS = ("message", "function_call", "function_call_output", "reasoning", "item_reference")


def check_chat(body: dict[str, Any], facts: ServedFacts) -> None:
    """`/v1/chat/completions`; changes `body`."""
    check_messages(body, facts)
    check_tools(body, facts)
    check_length(body, "max_tokens", "max_completion_tokens", "n_predict")
    _check_generation(body, facts, chat=True)
    check_stops(body)
    fields.one_of(body, "reasoning_effort", _EFFORTS)
    modalities = body.pop("modalities", None)
    if modalities not in (None, ["text"]):
        raise fields.wrong("modalities", "text alone", modalities)
    for name in ("audio", "web_search_options"):
        fields.refused(body, name, "this server has none")
    if body.get("tools") and body.get("grammar"):
        raise RequestError("grammar: expected no tools beside it", "grammar")
    kwargs = body.get("chat_template_kwargs")
    if kwargs is not None and not isinstance(kwargs, dict):
        raise fields.wrong("chat_template_kwargs", "an object", kwargs)


def _check_generation(body: dict[str, Any], facts: ServedFacts, *, chat: bool) -> None:
    check_choices(body, facts)
    check_probabilities(body, chat=chat)
    check_bias(body, facts)
    check_form(body, facts)
    check_sampling(body)


def check_completion(body: dict[str, Any], facts: ServedFacts) -> None:
    """`/v1/completions`; changes `body`."""
    body["prompt"] = _prompts(body.get("prompt"), facts)
    check_length(body, "max_tokens", "n_predict")
    _check_generation(body, facts, chat=False)
    check_stops(body)
    fields.refused(body, "echo", "this server returns the continuation alone")
    fields.refused(body, "suffix", "this server continues a text, it fills no gap")
    fields.integer(body, "best_of", 1, 1)


def _prompts(prompt: Any, facts: ServedFacts) -> Any:
    """A text, tokens, or a list of either."""
    many = prompt if isinstance(prompt, list) and any(isinstance(item, (str, list)) for item in prompt) else [prompt]
    if not 0 < len(many) <= facts.slots:
        raise RequestError(f"prompt: expected at most {facts.slots} prompts, got {len(many)}", "prompt")
    for item in many:
        if isinstance(item, list):
            check_tokens(item, "prompt", facts)
        elif not isinstance(item, str) or not item:
            raise fields.wrong("prompt", "a text or a list of tokens that is not empty", item)
    return many[0] if len(many) == 1 else many


def check_tokens(tokens: Any, name: str, facts: ServedFacts) -> None:
    """A list of tokens of the vocabulary, not empty."""
    if not isinstance(tokens, list) or not tokens:
        raise fields.wrong(name, "a list of tokens that is not empty", tokens)
    for token in tokens:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < facts.n_vocab:
            raise fields.wrong(name, f"tokens from 0 to {facts.n_vocab - 1}", token)


def check_response(body: dict[str, Any], facts: ServedFacts) -> None:
    """`/v1/responses`; changes `body`."""
    items = body.get("input")
    if isinstance(items, list) and items:
        for index, item in enumerate(items):
            _check_item(item, f"input[{index}]", facts)
    elif not isinstance(items, str) or not items:
        raise fields.wrong("input", "a text or a list of items", items)
    if not facts.has_template:
        raise RequestError("input: the model has no chat template; serve it with --template NAME", "input")
    for name in ("previous_response_id", "conversation"):
        fields.refused(body, name, "this server keeps no conversations; send all of it")
        body.pop(name, None)
    fields.refused(body, "background", "this server answers at once")
    fields.text(body, "instructions", 1 << 24)
    _check_text_form(body)
    check_tools(body, facts)
    schema_as_grammar(body, facts)
    check_length(body, "max_output_tokens")
    check_choices(body, facts)
    check_sampling(body)


def _check_item(item: Any, where: str, facts: ServedFacts) -> None:
    if not isinstance(item, dict):
        raise fields.wrong(where, "an object", item)
    kind = item.get("type", "message")
    if kind not in _KINDS:
        raise fields.wrong(f"{where}.type", f"one of {', '.join(_KINDS)}", kind)
    if kind == "item_reference":
        raise RequestError(f"{where}: this server keeps no items", where)
    if kind == "function_call_output":
        check_content(item.get("output"), f"{where}.output", facts)
    if kind == "message":
        if item.get("role") not in ("system", "developer", "user", "assistant"):
            raise fields.wrong(f"{where}.role", "system, developer, user or assistant", item.get("role"))
        if item["role"] == "developer":
            item["role"] = "system"
        check_content(item.get("content"), f"{where}.content", facts)


def _check_text_form(body: dict[str, Any]) -> None:
    """`text.format`, which becomes the chat's `response_format`."""
    told = body.get("text")
    form = told.get("format") if isinstance(told, dict) else None
    if form is None or not isinstance(form, dict) or form.get("type") in (None, "text"):
        return
    if form["type"] == "json_object":
        body["response_format"] = {"type": "json_object"}
    elif form["type"] == "json_schema":
        check_schema(form.get("schema"), "text.format.schema")
        named = {"name": form.get("name", "answer"), "schema": form["schema"]}
        body["response_format"] = {"type": "json_schema", "json_schema": named}
    else:
        raise fields.wrong("text.format.type", "text, json_object or json_schema", form["type"])


def check_anthropic(body: dict[str, Any], facts: ServedFacts) -> None:
    """`/v1/messages`; changes `body`."""
    check_anthropic_prompt(body, facts)
    fields.integer(body, "max_tokens", 1, 2**31 - 1)
    if "max_tokens" not in body:
        raise RequestError("max_tokens: expected a whole number, got none", "max_tokens")
    check_choices(body, facts)
    check_stops(body, "stop_sequences")
    check_sampling(body)


def check_anthropic_prompt(body: dict[str, Any], facts: ServedFacts) -> None:
    """What `/v1/messages/count_tokens` counts; changes `body`."""
    system = body.get("system")
    if system is None:
        body.pop("system", None)
    else:
        check_content(system, "system", facts)
    for index, message in enumerate(body["messages"] if isinstance(body.get("messages"), list) else []):
        if isinstance(message, dict) and message.get("role") not in ("user", "assistant"):
            raise fields.wrong(f"messages[{index}].role", "user or assistant", message.get("role"))
    check_messages(body, facts)
    check_tools(body, facts)


def check_tokenize(body: dict[str, Any], _facts: ServedFacts) -> None:
    """`/tokenize`; changes `body`."""
    if not isinstance(body.get("content"), str):
        raise fields.wrong("content", "a text", body.get("content"))


def check_detokenize(body: dict[str, Any], facts: ServedFacts) -> None:
    """`/detokenize`; changes `body`."""
    if body.get("tokens") != []:
        check_tokens(body.get("tokens"), "tokens", facts)


def check_template(body: dict[str, Any], facts: ServedFacts) -> None:
    """`/apply-template`; changes `body`."""
    check_messages(body, facts)
    check_tools(body, facts)


def check_rerank(body: dict[str, Any], facts: ServedFacts) -> None:
    """`/v1/rerank`; changes `body`."""
    if "rerank" not in facts.tasks:
        raise RequestError(f"model: '{facts.name}' is no cross-encoder, so it cannot rerank", "model")
    if not isinstance(body.get("query"), str) or not body["query"]:
        raise fields.wrong("query", "a text", body.get("query"))
    documents = body.get("documents")
    if not isinstance(documents, list) or not documents:
        raise fields.wrong("documents", "a list of texts", documents)
    texts = [item.get("text") if isinstance(item, dict) else item for item in documents]
    for index, item in enumerate(texts):
        if not isinstance(item, str):
            raise fields.wrong(f"documents[{index}]", "a text", item)
    body["documents"] = texts
    fields.integer(body, "top_n", 1, len(texts))
