"""Requests and streams without a server: nothing that a client sends raises anything but a RequestError."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.edge.serve.generations import GENERATIONS, Asked
from edgepack.edge.serve.protocol import embeddings, requests
from edgepack.edge.serve.protocol.errors import RequestError, Secrets, engine_error
from edgepack.edge.serve.protocol.events import events
from edgepack.edge.serve.protocol.facts import ServedFacts
from edgepack.edge.serve.protocol.forced_calls import parsed_call
from edgepack.edge.serve.protocol.schema import check_schema

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

FACTS = ServedFacts("name", 0, ("text", "embedding"), 512, 512, 315, 64, 4, takes_tools=True)
SECRETS = Secrets.of_paths("name", ["/home/somebody/models/name.gguf"])
FIELDS = [
    "messages",
    "prompt",
    "input",
    "system",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "temperature",
    "top_p",
    "top_k",
    "stop",
    "n",
    "stop_sequences",
    "stream",
    "stream_options",
    "logprobs",
    "top_logprobs",
    "logit_bias",
    "response_format",
    "tools",
    "tool_choice",
    "seed",
    "role",
    "content",
    "type",
    "text",
    "image_url",
    "tool_calls",
    "function",
    "name",
    "arguments",
    "json_schema",
    "schema",
    "grammar",
    "functions",
    "query",
    "documents",
    "tokens",
    "dimensions",
    "encoding_format",
    "input_schema",
    "source",
    "url",
    "format",
    "instructions",
    "items",
    "item_reference",
    "call_id",
    "output",
]
leaves = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5) | st.sampled_from(
    ["user", "assistant", "system", "tool", "text", "image_url", "function", "auto", "required", "any", "message",
     "json_schema", "tool_use", "tool_result", "function_call", "function_call_output", "data:image/png;base64,AA"]
)  # fmt: skip
bodies = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5),
    max_leaves=20,
)


GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "x"}]},
            {"role": "assistant", "content": "y"},
        ],
        "tools": [{"type": "function", "function": {"name": "paint", "parameters": {"type": "object"}}}],
    },
    "/v1/completions": {"prompt": "x"},
    "/v1/responses": {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}]},
    "/v1/messages": {
        "messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "x"}]}],
        "system": [{"type": "text", "text": "x"}],
        "tools": [{"name": "paint", "input_schema": {"type": "object"}}],
        "max_tokens": 3,
    },
}


@st.composite
def damaged(draw: st.DrawFn, value: Any) -> Any:
    """`value` with something else in one place."""
    if isinstance(value, dict) and value and draw(st.integers(0, 3)):
        name = draw(st.sampled_from([*value, *FIELDS[:20]]))
        return {**value, name: draw(damaged(value[name]) if name in value else bodies)}
    if isinstance(value, list) and value and draw(st.integers(0, 3)):
        return [draw(damaged(item)) for item in value]
    return draw(bodies)


def refusal(work: Callable[[], Any]) -> RequestError | None:
    try:
        work()
    except RequestError as error:
        return error
    return None


def ask(path: str, body: Any, facts: ServedFacts) -> None:
    if isinstance(body, dict):
        json.dumps(Asked(path, body, facts).body)


@settings(max_examples=400, deadline=None)
@given(draws=st.data(), path=st.sampled_from(list(GENERATIONS)),
       facts=st.sampled_from([FACTS, replace(FACTS, takes_tools=False), replace(FACTS, vision=True)]))  # fmt: skip
def test_a_body_is_asked_or_refused_and_nothing_else(draws: st.DataObject, path: str, facts: ServedFacts) -> None:
    body = draws.draw(damaged(GOOD[path]))
    error = refusal(lambda: ask(path, body, facts))
    assert error is None or (400 <= error.status < 500 and len(str(error)) < 1000)


@pytest.mark.parametrize("path", GENERATIONS)
def test_a_good_body_is_asked(path: str) -> None:
    ask(path, json.loads(json.dumps(GOOD[path])), FACTS)


@settings(max_examples=150, deadline=None)
@given(body=st.dictionaries(st.sampled_from(FIELDS), bodies, max_size=6))
def test_questions_are_asked_or_refused_and_nothing_else(body: dict[str, Any]) -> None:
    facts = replace(FACTS, tasks=("text", "embedding", "rerank"))
    for check in (
        requests.check_tokenize, requests.check_detokenize, requests.check_template, requests.check_rerank,
        requests.check_anthropic_prompt, embeddings.engine_request,
    ):  # fmt: skip
        error = refusal(partial(check, dict(body), facts))
        assert error is None or error.status == 400


def chunk(**delta: Any) -> dict[str, Any]:
    reason = delta.pop("finish", None)
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return {"id": "chatcmpl-x", "object": "chat.completion.chunk", "model": "name", "choices": [choice]}


# A red one.
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
CALL = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "paint", "arguments": '{"red"'}}
MORE = {"index": 0, "function": {"arguments": ": true}"}}
STREAM = [
    {**chunk(role="assistant", content=None), "prompt_progress": {"total": 5, "processed": 0}},
    chunk(role="assistant", content=None),
    chunk(reasoning_content="I "),
    chunk(reasoning_content="think"),
    chunk(content="é"),
    chunk(content="nd"),
    chunk(tool_calls=[CALL]),
    chunk(tool_calls=[MORE]),
    chunk(finish="tool_calls"),
    {**chunk(), "choices": [], "usage": USAGE},
]


def as_bytes(values: list[dict[str, Any]], size: int) -> AsyncIterator[bytes]:
    data = b":\n\n" + b"".join(f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode() for value in values)
    data += b"data: [DONE]\n\n"

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), size):
            yield data[start : start + size]

    return pieces()


def answered(path: str, body: dict[str, Any], values: list[dict[str, Any]], size: int = 7) -> tuple[list[Any], Any]:
    """The events that a client gets, and the whole answer made of them."""

    async def collect() -> tuple[list[Any], Any]:
        asked, told = Asked(path, body, FACTS), []
        async for name, value in asked.answer(as_bytes(values, size), SECRETS):
            told.append((name, value))
            asked.whole.add(name, value)
        return told, asked.whole.result()

    return asyncio.run(collect())


@pytest.mark.parametrize("size", [1, 2, 3, 64, 10**6])
def test_a_stream_is_the_same_however_it_is_cut(size: int) -> None:
    async def read() -> list[Any]:
        return [json.loads(event.data) async for event in events(as_bytes(STREAM, size)) if event.data != "[DONE]"]

    assert asyncio.run(read()) == STREAM


def test_a_chat_is_put_together_from_its_pieces() -> None:
    told, whole = answered("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}, STREAM)
    assert not any("prompt_progress" in value for _name, value in told)
    message = whole["choices"][0]["message"]
    assert message["content"] == "énd"
    assert message["reasoning_content"] == "I think"
    assert message["tool_calls"][0]["function"] == {"name": "paint", "arguments": '{"red": true}'}
    assert whole["choices"][0]["finish_reason"] == "tool_calls"
    assert whole["usage"] == USAGE


def test_anthropics_message_has_a_block_of_each_kind() -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 5}
    told, whole = answered("/v1/messages", body, STREAM)
    assert [name for name, _value in told] == [
        "message_start", "content_block_start", "content_block_delta", "content_block_delta", "content_block_stop",
        "content_block_start", "content_block_delta", "content_block_delta", "content_block_stop",
        "content_block_start", "content_block_delta", "content_block_delta", "content_block_stop",
        "message_delta", "message_stop",
    ]  # fmt: skip
    assert [block["type"] for block in whole["content"]] == ["thinking", "text", "tool_use"]
    assert whole["content"][0]["thinking"] == "I think"
    assert whole["content"][2]["input"] == {"red": True}
    assert whole["stop_reason"] == "tool_use"
    assert whole["usage"] == {"input_tokens": 5, "output_tokens": 3}
    assert told[0][1]["message"]["usage"]["input_tokens"] == 5


def test_a_responses_events_are_numbered_and_its_items_whole() -> None:
    told, whole = answered("/v1/responses", {"input": "x"}, STREAM)
    assert [value["sequence_number"] for _name, value in told] == list(range(len(told)))
    assert [item["type"] for item in whole["output"]] == ["reasoning", "message", "function_call"]
    assert whole["output"][1]["content"][0]["text"] == "énd"
    assert whole["output"][2]["arguments"] == '{"red": true}'
    assert whole["status"] == "completed"
    assert whole["usage"]["output_tokens"] == 3


def test_a_demanded_call_is_the_whole_answer() -> None:
    tool = {"type": "function", "function": {"name": "paint", "parameters": {"type": "object"}}}
    body = {"messages": [{"role": "user", "content": "x"}], "tools": [tool], "tool_choice": "required"}
    text = '{"name": "paint", "arguments": {"red": true}}'
    stream = [chunk(content=text[:20]), chunk(content=text[20:]), chunk(finish="stop")]
    _told, whole = answered("/v1/chat/completions", dict(body), stream)
    assert whole["choices"][0]["finish_reason"] == "tool_calls"
    assert whole["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] == '{"red": true}'
    assert not whole["choices"][0]["message"]["content"]
    _told, cut = answered("/v1/chat/completions", dict(body), [stream[0], chunk(finish="length")])
    assert cut["choices"][0]["finish_reason"] == "length"
    assert "tool_calls" not in cut["choices"][0]["message"]


@given(text=st.text())
def test_a_text_is_a_call_or_none(text: str) -> None:
    found = parsed_call(text)
    assert found is None or json.loads(found[1]) is not None


def test_an_error_in_a_stream_is_told_and_shows_no_path() -> None:
    failed = {"error": {"code": 500, "message": "cannot read /home/somebody/models/name.gguf"}}
    with pytest.raises(RequestError) as error:
        answered("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}, [chunk(content="x"), failed])
    assert str(error.value) == "cannot read name"


@pytest.mark.parametrize(
    ("status", "message", "expected", "param"),
    [
        (400, "Field 'top_k': must be a number", 400, "top_k"),
        (500, "image input is not supported", 400, None),
        (500, "Compute error.", 500, None),
        (501, "This server does not support embeddings", 400, None),
        (400, "Failed to initialize samplers: failed to parse grammar", 400, "grammar"),
        (500, "Jinja Exception: no", 400, "messages"),
    ],
)
def test_only_what_is_no_fault_of_the_request_is_a_500(status: int, message: str, expected: int, param: str) -> None:
    error = engine_error(status, json.dumps({"error": {"message": message, "type": "x"}}).encode(), SECRETS)
    assert (error.status, error.param) == (expected, param)
    for odd in (b"", b"[]", b'{"error": 3}', b"\xff"):
        assert engine_error(500, odd, SECRETS).status == 500


@pytest.mark.parametrize(
    "schema",
    [
        3, None, "x", {"minLength": 10**9}, {"$ref": "#"}, {"items": {"minItems": 10**7}}, {"pattern": "a" * 2000},
        {"properties": {str(number): {} for number in range(1000)}},
        {"anyOf": [{"enum": [[number]]} for number in range(10_000)]},
    ],
    ids=range(9),
)  # fmt: skip
def test_a_schema_that_would_take_minutes_is_refused(schema: Any) -> None:
    with pytest.raises(RequestError) as error:
        check_schema(schema, "field")
    assert error.value.param == "field"


def test_addresses_of_pictures_are_not_opened() -> None:
    seeing = replace(FACTS, vision=True)
    for address in ("http://example.org/x.png", "file:///etc/passwd", "/etc/passwd", "ftp://x", "", None, 3):
        part = {"type": "image_url", "image_url": {"url": address}}
        with pytest.raises(RequestError, match=r"messages\[0\]"):
            Asked("/v1/chat/completions", {"messages": [{"role": "user", "content": [part]}]}, seeing)
        source = {"type": "image", "source": {"type": "url", "url": address}}
        body = {"messages": [{"role": "user", "content": [source]}], "max_tokens": 1}
        with pytest.raises(RequestError, match=r"messages\[0\]"):
            Asked("/v1/messages", body, seeing)
    inside = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
    body = {"messages": [{"role": "user", "content": [inside]}], "max_tokens": 1}
    told = Asked("/v1/messages", body, seeing).body["messages"][0]["content"]
    assert told == [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}]
