"""litellm, which speaks of a server such as this one as `openai/NAME`."""

from __future__ import annotations

import json
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would fetch prices

import litellm
import pytest
from features import SCHEMA, TOOL, arguments, run

url, model = arguments()
common = {"model": f"openai/{model}", "api_base": f"{url}/v1", "api_key": "none", "max_retries": 0, "timeout": 120}
messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
short = {**common, "messages": messages, "max_tokens": 6, "temperature": 0}
tools = [{"type": "function", "function": TOOL}]


def chat() -> None:
    assert litellm.completion(**short).usage.completion_tokens <= 6


def stream() -> None:
    whole = litellm.completion(**short).choices[0].message.content or ""
    pieces = [chunk.choices[0].delta.content or "" for chunk in litellm.completion(**short, stream=True)]
    assert "".join(pieces) == whole


def usage_in_stream() -> None:
    chunks = litellm.completion(**short, stream=True, stream_options={"include_usage": True})
    assert any(getattr(chunk, "usage", None) for chunk in chunks)


def json_schema() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    answer = litellm.completion(**{**short, "max_tokens": 100}, response_format=form)
    assert json.loads(answer.choices[0].message.content)["color"] in ("red", "blue")


def tools_auto() -> None:
    assert litellm.completion(**short, tools=tools, tool_choice="auto").choices


def tools_required() -> None:
    answer = litellm.completion(**{**short, "max_tokens": 200}, tools=tools, tool_choice="required")
    assert answer.choices[0].message.tool_calls[0].function.name == "paint"


def embeddings() -> None:
    answer = litellm.embedding(**common, input=["hello", "world"])
    assert len(answer.data) == 2


def errors() -> None:
    with pytest.raises(litellm.BadRequestError, match="n: expected 1 to"):
        litellm.completion(**short, n=100)


run(
    {
        "chat": chat, "stream": stream, "usage in stream": usage_in_stream, "system, developer": chat,
        "JSON schema": json_schema, "tools auto": tools_auto, "tools required": tools_required,
        "embeddings": embeddings, "errors": errors,
    }
)  # fmt: skip
