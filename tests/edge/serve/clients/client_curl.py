"""curl, as in every README."""

from __future__ import annotations

import json
import subprocess

from features import QUESTION, SCHEMA, TOOL, arguments, run

url, model = arguments()
short = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 6, "temperature": 0}


def curl(path: str, body: object = None, *options: str) -> str:
    data = [] if body is None else ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
    command = ["curl", "-sS", "--max-time", "120", *options, *data, f"{url}{path}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def chat() -> None:
    assert json.loads(curl("/v1/chat/completions", short))["choices"][0]["message"]["role"] == "assistant"


def stream() -> None:
    assert curl("/v1/chat/completions", {**short, "stream": True}, "-N").endswith("data: [DONE]\n\n")


def usage_in_stream() -> None:
    text = curl("/v1/chat/completions", {**short, "stream": True, "stream_options": {"include_usage": True}}, "-N")
    assert '"usage"' in text


def json_schema() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    answer = json.loads(curl("/v1/chat/completions", {**short, "max_tokens": 100, "response_format": form}))
    assert json.loads(answer["choices"][0]["message"]["content"])["color"] in ("red", "blue")


def tools_required() -> None:
    asked = {"tools": [{"type": "function", "function": TOOL}], "tool_choice": "required", "max_tokens": 200}
    answer = json.loads(curl("/v1/chat/completions", {**short, **asked}))
    assert answer["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "paint"


def completions() -> None:
    assert json.loads(curl("/v1/completions", {"prompt": QUESTION, "max_tokens": 3}))["usage"]["completion_tokens"] <= 3


def embeddings() -> None:
    assert len(json.loads(curl("/v1/embeddings", {"input": [QUESTION]}))["data"]) == 1


def dimensions() -> None:
    answer = json.loads(curl("/v1/embeddings", {"input": QUESTION, "dimensions": 4}))
    assert len(answer["data"][0]["embedding"]) == 4


def responses() -> None:
    assert json.loads(curl("/v1/responses", {"input": QUESTION, "max_output_tokens": 6}))["object"] == "response"


def messages() -> None:
    assert json.loads(curl("/v1/messages", short))["type"] == "message"


def models() -> None:
    assert json.loads(curl("/v1/models"))["data"][0]["id"] == model
    assert json.loads(curl(f"/v1/models/{model}"))["id"] == model


def errors() -> None:
    assert json.loads(curl("/v1/chat/completions", {**short, "n": 100}))["error"]["param"] == "n"
    assert json.loads(curl("/v1/chat/completions", 3))["error"]["type"] == "invalid_request_error"


run(
    {
        "chat": chat, "stream": stream, "usage in stream": usage_in_stream, "JSON schema": json_schema,
        "tools required": tools_required, "completions": completions, "embeddings": embeddings,
        "dimensions": dimensions, "responses": responses, "messages": messages, "models": models, "errors": errors,
    }
)  # fmt: skip
