"""Fields of requests that generate text: how tokens are chosen, how many, and what the answer must look like.

Where a field is absent or null stands what `edgepack run` does, so that both answer alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepack.edge.llama.options import SamplingOptions
from edgepack.edge.serve.protocol import fields
from edgepack.edge.serve.protocol.errors import RequestError
from edgepack.edge.serve.protocol.schema import check_schema, schema_as_grammar

if TYPE_CHECKING:
    from edgepack.edge.serve.protocol.facts import ServedFacts

_MOST_STOPS, _MOST_STOP = 16, 1024
_MOST_GRAMMAR = 1 << 16
_MOST_LOGPROBS = 20  # OpenAI's
_MOST_BIASES = 1024
_INT32 = 2**31 - 1
_SEEDS = 2**32 - 1
# llama.cpp's name of a field → ours.
_DEFAULTS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repeat_penalty": "repeat_penalty",
    "repeat_last_n": "repeat_last_n",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
}
# Fields of the engine's own making that no client has a use for; some of them are read without a check.
_INTERNAL = ("id_slot", "parser", "generation_prompt", "grammar_triggers", "preserved_tokens", "chat_format", "lora")


def check_sampling(body: dict[str, Any]) -> None:
    """Check what says how tokens are chosen, and fill in the defaults; changes `body`.

    Raises:
        RequestError: a field is out of its range; the error names it.
    """
    fields.number(body, "temperature", 0, 100)
    fields.number(body, "top_p", 0, 1)
    fields.number(body, "min_p", 0, 1)
    fields.number(body, "typical_p", 0, 1)
    fields.number(body, "repeat_penalty", 1e-6, 100)
    fields.number(body, "frequency_penalty", -2, 2)
    fields.number(body, "presence_penalty", -2, 2)
    fields.integer(body, "top_k", 0, _INT32)
    fields.integer(body, "repeat_last_n", -1, _INT32)
    fields.integer(body, "seed", -1, _SEEDS)
    if body.get("seed") == -1:
        del body["seed"]
    usual = SamplingOptions()
    for name, ours in _DEFAULTS.items():
        body.setdefault(name, getattr(usual, ours))
    for name in _INTERNAL:
        body.pop(name, None)


def check_length(body: dict[str, Any], *names: str) -> None:
    """The most tokens of an answer, under any of `names`; the first is what the engine reads. Changes `body`.

    -1 is as many as the context holds.
    """
    for name in names:
        fields.integer(body, name, -1, _INT32)
        if body.get(name) == 0:
            raise RequestError(f"{name}: expected at least 1, got 0", name)
    given = [body.pop(name) for name in names if name in body]
    if given and given[-1] != -1:
        body[names[0]] = given[-1]


def check_stops(body: dict[str, Any], name: str = "stop") -> None:
    """Texts that end the answer; empty ones say nothing. Changes `body`."""
    value = body.pop(name, None)
    if value is None:
        return
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise fields.wrong(name, "a text or a list of texts", value)
    if len(stops) > _MOST_STOPS or any(len(stop) > _MOST_STOP for stop in stops):
        raise RequestError(f"{name}: expected at most {_MOST_STOPS} texts of {_MOST_STOP} characters", name)
    if stops := [stop for stop in stops if stop]:
        body[name] = stops


def check_choices(body: dict[str, Any], facts: ServedFacts) -> None:
    """`n` answers at once: as many as there are slots."""
    fields.integer(body, "n", 1, facts.slots)
    fields.boolean(body, "stream")
    options = body.get("stream_options")
    if options is None:
        body.pop("stream_options", None)
    elif not isinstance(options, dict):
        raise fields.wrong("stream_options", "an object", options)
    elif not body.get("stream"):
        raise RequestError("stream_options: expected only with stream: true", "stream_options")


def check_probabilities(body: dict[str, Any], *, chat: bool) -> None:
    """How many alternatives are told of each token; changes `body`."""
    fields.integer(body, "n_probs", 0, _MOST_LOGPROBS)
    if not chat:
        fields.integer(body, "logprobs", 0, _MOST_LOGPROBS)
        return
    asked = fields.boolean(body, "logprobs")
    fields.integer(body, "top_logprobs", 0, _MOST_LOGPROBS)
    if "top_logprobs" in body and not asked:
        raise RequestError("top_logprobs: expected only with logprobs: true", "top_logprobs")


def check_bias(body: dict[str, Any], facts: ServedFacts) -> None:
    """`logit_bias`: token id → number, as OpenAI has it, or llama.cpp's list of pairs."""
    given = body.get("logit_bias")
    if given is None:
        body.pop("logit_bias", None)
        return
    pairs = list(given.items()) if isinstance(given, dict) else given
    if not isinstance(pairs, list) or len(pairs) > _MOST_BIASES:
        raise fields.wrong("logit_bias", f"an object of at most {_MOST_BIASES} tokens", given)
    body["logit_bias"] = [_bias(pair, facts) for pair in pairs]


def _bias(pair: Any, facts: ServedFacts) -> list[Any]:
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        raise fields.wrong("logit_bias", "pairs of a token and a number", pair)
    token, strength = pair
    if isinstance(token, str) and token.isdecimal() and len(token) < 12:
        token = int(token)
    if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < facts.n_vocab:
        raise fields.wrong("logit_bias", f"tokens from 0 to {facts.n_vocab - 1}", token)
    if strength is False:
        return [token, False]
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not -100 <= strength <= 100:
        raise fields.wrong("logit_bias", "numbers from -100 to 100", strength)
    return [token, strength]


def check_form(body: dict[str, Any], facts: ServedFacts) -> None:
    """What the answer must look like: a grammar, or JSON of a schema; changes `body`."""
    fields.text(body, "grammar", _MOST_GRAMMAR)
    if body.get("json_schema") is None:
        body.pop("json_schema", None)
    else:
        check_schema(body["json_schema"], "json_schema")
    _check_response_format(body)
    schema_as_grammar(body, facts)


def _check_response_format(body: dict[str, Any]) -> None:
    form = body.get("response_format")
    if form is None:
        body.pop("response_format", None)
        return
    if not isinstance(form, dict) or form.get("type") not in ("text", "json_object", "json_schema"):
        raise fields.wrong("response_format", "an object whose type is text, json_object or json_schema", form)
    if form["type"] == "json_schema":
        named = form.get("json_schema")
        if not isinstance(named, dict) or "schema" not in named:
            raise fields.wrong("response_format.json_schema", "an object with a schema", named)
        check_schema(named["schema"], "response_format.json_schema.schema")
    elif form.get("schema") is not None:
        check_schema(form["schema"], "response_format.schema")
