"""A schema is followed whatever the vocabulary, or refused: never forgotten in silence."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from serving import ask, chat

if TYPE_CHECKING:
    from serving import Server

ONE = {"enum": ["yes", "no"]}


def form(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def test_a_sentencepiece_model_follows_a_schema_in_every_api(server: Server) -> None:
    """The served model's vocabulary is SentencePiece's, which the engine's own converter misreads."""
    status, answer = ask(server, "/v1/chat/completions", chat(response_format=form(ONE), max_tokens=30))
    assert status == 200, answer
    assert json.loads(answer["choices"][0]["message"]["content"]) in ("yes", "no")
    for more in ({"response_format": form(ONE)}, {"json_schema": ONE}):
        status, answer = ask(server, "/v1/completions", {"prompt": "a", "temperature": 0, "max_tokens": 30, **more})
        assert status == 200, answer
        assert json.loads(answer["choices"][0]["text"]) in ("yes", "no")
    told = {"format": {"type": "json_schema", "name": "answer", "schema": ONE}}
    request = {"input": "hi", "temperature": 0, "max_output_tokens": 30, "text": told}
    status, answer = ask(server, "/v1/responses", request)
    assert status == 200, answer
    assert json.loads(answer["output"][-1]["content"][0]["text"]) in ("yes", "no")


def test_an_object_is_an_object(server: Server) -> None:
    status, answer = ask(
        server, "/v1/chat/completions", chat(response_format={"type": "json_object"}, max_tokens=3)
    )  # fmt: skip
    assert status == 200, answer
    assert answer["choices"][0]["message"]["content"].startswith("{")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"$ref": "#/$defs/absent"},
        {"enum": []},
        {"type": "object", "properties": {"a": {"type": "stirng"}}},
        {"type": "string", "pattern": "(("},
        {"type": "array", "minItems": 3, "maxItems": 2},
    ],
)
def test_a_schema_that_means_nothing_is_a_400_that_names_it(server: Server, schema: Any) -> None:
    status, answer = ask(server, "/v1/chat/completions", chat(response_format=form(schema)))
    assert status == 400
    assert "schema" in answer["error"]["message"]
