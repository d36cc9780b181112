"""What once killed, hung or confused the server: now an answer, or a 400 that names the field; and it lives on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from serving import ask, ask_all, chat

if TYPE_CHECKING:
    from pathlib import Path

    from serving import Server

pytestmark = pytest.mark.slow
TOOL = {"name": "paint", "parameters": {"type": "object", "properties": {"red": {"type": "boolean"}}}}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}


def schema(value: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}}


def picture(url: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}


def nested(depth: int) -> Any:
    value: Any = {"type": "string"}
    for _ in range(depth):
        value = {"type": "array", "items": value}
    return value


REFUSED = {
    "grammar that does not parse": ({"grammar": "root ::= ("}, "grammar"),
    "grammar without its rule": ({"grammar": "root ::= nothing"}, "grammar"),
    "schema of a billion letters": (schema({"type": "string", "minLength": 10**9}), "response_format"),
    "schema that is itself": (schema({"$ref": "#"}), "response_format"),
    "schema that is another that is itself": (
        schema({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
        "response_format",
    ),
    "schema nested without end": (schema(nested(400)), "response_format"),
    "schema that is none": (schema(3), "response_format"),
    "form that is none": ({"response_format": "json"}, "response_format"),
    "no tokens": ({"max_tokens": 0}, "max_tokens"),
    "fewer than none": ({"max_completion_tokens": -5}, "max_completion_tokens"),
    "tokens in words": ({"max_tokens": "many"}, "max_tokens"),
    "cold": ({"temperature": -1}, "temperature"),
    "temperature in words": ({"temperature": "hot"}, "temperature"),
    "too many answers": ({"n": 100}, "n"),
    "no answer": ({"n": 0}, "n"),
    "a million alternatives": ({"logprobs": True, "top_logprobs": 10**6}, "top_logprobs"),
    "alternatives of nothing": ({"top_logprobs": 2}, "top_logprobs"),
    "bias of no token": ({"logit_bias": {"99999999": 1}}, "logit_bias"),
    "stop that is a number": ({"stop": 3}, "stop"),
    "options of no stream": ({"stream_options": {"include_usage": True}}, "stream_options"),
    "picture for a text model": ({"messages": [{"role": "user", "content": [PICTURE]}]}, "messages[0].content[0]"),
    "picture from a file": (picture("file:///etc/passwd"), "messages[0].content[0]"),
    "sound for a text model": (
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
        "messages[0].content[0]",
    ),
    "unknown role": ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    "message that is none": ({"messages": [3]}, "messages[0]"),
    "messages that are none": ({"messages": 3}, "messages"),
    "no message": ({"messages": []}, "messages"),
    "content that is none": ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    "tool without a name": ({"tools": [{"type": "function", "function": {}}]}, "tools[0]"),
    "choice of no tool": (
        {
            "tools": [{"type": "function", "function": TOOL}],
            "tool_choice": {"type": "function", "function": {"name": "sing"}},
        },
        "tool_choice",
    ),
    "functions of old": ({"functions": [TOOL]}, "functions"),
    "sound as the answer": ({"modalities": ["audio"]}, "modalities"),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_honoured_is_a_400_that_names_the_field(server: Server, what: str, stream: bool) -> None:
    more, param = REFUSED[what]
    if what == "options of no stream" and stream:
        pytest.skip("with a stream they are right")
    status, answer = ask(server, "/v1/chat/completions", chat(stream=stream, **more))
    assert status == 400, answer
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["param"].startswith(param)
    assert param.split(".")[0] in answer["error"]["message"]


HONOURED = {
    "many letters at most": schema({"type": "string", "maxLength": 65536}),
    "many items at most": schema({"type": "array", "items": {"type": "integer"}, "maxItems": 100_000}),
    "two thousand letters": schema({"type": "string", "minLength": 2000}),
    "schema in itself": schema(
        {
            "$defs": {"tree": {"type": "object", "properties": {"left": {"$ref": "#/$defs/tree"}}}},
            "$ref": "#/$defs/tree",
        }
    ),
    "empty stop": {"stop": ""},
    "no stop": {"stop": None},
    "empty stops": {"stop": ["", ""]},
    "no temperature": {"temperature": None},
    "nothing anywhere": {"top_p": None, "seed": None, "n": None, "logprobs": None, "tools": None, "user": None},
    "developer": {"messages": [{"role": "developer", "content": "be brief"}, {"role": "user", "content": "hi"}]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
    "json": {"response_format": {"type": "json_object"}},
    "text": {"response_format": {"type": "text"}},
    "fields of others": {"store": False, "metadata": {}, "service_tier": "auto", "parallel_tool_calls": True},
}


@pytest.mark.parametrize("what", HONOURED)
def test_what_was_wrong_or_fatal_is_honoured(server: Server, what: str) -> None:
    status, answer = ask(server, "/v1/chat/completions", chat(**HONOURED[what]))
    assert status == 200, answer
    assert answer["usage"]["completion_tokens"] > 0
    assert answer["choices"][0]["finish_reason"] in ("stop", "length")


@pytest.mark.parametrize("path", ["/detokenize", "/extras/detokenize"])
@pytest.mark.parametrize("tokens", [[9999999], [-5], ["a"], [True], [2**70], "x", None, 3])
def test_tokens_outside_the_vocabulary_are_a_400_that_names_them(server: Server, path: str, tokens: Any) -> None:
    status, answer = ask(server, path, {"tokens": tokens})
    assert status == 400
    assert answer["error"]["param"] == "tokens"


@pytest.mark.parametrize(
    ("path", "field"), [("/v1/completions", "prompt"), ("/v1/embeddings", "input"), ("/v1/responses", "input")]
)
@pytest.mark.parametrize("value", [[-5], [9999999], {}, None, 3, "", [], [[]], [None]])
def test_a_prompt_that_is_none_is_a_400_that_names_it(server: Server, path: str, field: str, value: Any) -> None:
    status, answer = ask(server, path, {field: value})
    assert status == 400
    assert answer["error"]["param"].startswith(field)


@pytest.mark.parametrize("more", [{"echo": True}, {"suffix": "x"}, {"best_of": 3}, {"logprobs": 1000}, {"n": 9}])
def test_what_completions_cannot_do_is_a_400_that_names_it(server: Server, more: dict[str, Any]) -> None:
    status, answer = ask(server, "/v1/completions", {"prompt": "hi", "max_tokens": 2, **more})
    assert status == 400
    assert answer["error"]["param"] == next(iter(more))


BODIES = [
    b"",
    b"{",
    b"[]",
    b"3",
    b'"x"',
    b"\xff\xfe",
    b'{"messages":NaN}',
    b"[" * 100_000,
    b'{"a":' + b"9" * 5000 + b"}",
]


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages", "/tokenize"]
)
@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_a_body_that_is_no_object_is_a_400(server: Server, path: str, body: bytes) -> None:
    assert ask(server, path, body)[0] == 400
    assert ask(server, "/health")[0] == 200


def test_errors_are_in_the_form_of_their_protocol(server: Server) -> None:
    _status, ours = ask(server, "/v1/messages", {"messages": [{"role": "user", "content": "x"}]})
    assert ours["type"] == "error"
    assert ours["error"]["type"] == "invalid_request_error"
    assert "max_tokens" in ours["error"]["message"]
    _status, theirs = ask(server, "/v1/responses", {"input": "x", "previous_response_id": "y"})
    assert theirs["error"]["param"] == "previous_response_id"


def test_paths_and_methods_that_do_not_exist(server: Server) -> None:
    assert ask(server, "/nothing")[0] == 404
    assert ask(server, "/slots")[0] == 404
    assert ask(server, "/v1/chat/completions")[0] == 405
    assert ask(server, "/v1/models/other")[0] == 404
    assert ask(server, "/v1/models/served")[1]["id"] == "served"
    assert ask(server, "/v1/chat/completions", chat(), method="DELETE")[0] in (404, 405)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/models", None), ("/props", None), ("/health", None), ("/v1/models/served", None), ("/v1/models/x", None),
        ("/v1/chat/completions", chat()), ("/v1/chat/completions", chat(stream=True)),
        ("/v1/chat/completions", chat(grammar="root ::= (")), ("/v1/completions", {"prompt": "x", "max_tokens": 2}),
        ("/v1/responses", {"input": "x", "max_output_tokens": 2}), ("/v1/embeddings", {"input": "x"}),
        ("/v1/messages", chat()), ("/v1/rerank", {"query": "x", "documents": ["y"]}), ("/infill", {}),
        ("/v1/chat/completions", chat(messages=[{"role": "user", "content": "x" * 5000}])),
    ],
)  # fmt: skip
def test_no_answer_shows_a_path_of_the_server(server: Server, served_model: Path, path: str, body: Any) -> None:
    _status, answer, headers = ask_all(server, path, body)
    told = f"{answer} {headers}"
    assert "secret-folder" not in told
    assert str(served_model.parent) not in told


def test_a_prompt_that_is_too_long_says_both_numbers(server: Server) -> None:
    for stream in (False, True):
        long = chat(messages=[{"role": "user", "content": "é" * 2000}], stream=stream)
        status, answer = ask(server, "/v1/chat/completions", long)
        assert status == 400
        assert answer["error"]["code"] == "context_length_exceeded"
        assert "the context holds 1024" in answer["error"]["message"]


def test_a_greedy_answer_is_the_same_whole_and_in_pieces(server: Server) -> None:
    import json

    _status, whole = ask(server, "/v1/chat/completions", chat(max_tokens=12))
    _status, text = ask(server, "/v1/chat/completions", chat(max_tokens=12, stream=True))
    assert text.endswith("data: [DONE]\n\n")
    chunks = [json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")]
    pieces = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"]]
    assert "".join(pieces) == whole["choices"][0]["message"]["content"]
    assert not any("usage" in chunk and not chunk["choices"] for chunk in chunks)  # it was not asked for
