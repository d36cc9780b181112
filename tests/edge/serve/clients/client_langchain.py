"""langchain-openai."""

from __future__ import annotations

import openai
import pytest
from features import arguments, run
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

url, model = arguments()
common = {"model": model, "base_url": f"{url}/v1", "api_key": "none", "max_retries": 0, "timeout": 120}
chatter = ChatOpenAI(**common, temperature=0, max_completion_tokens=6)
talker = ChatOpenAI(**common, temperature=0, max_completion_tokens=200)
messages = [SystemMessage("be brief"), HumanMessage("hi")]


class Painted(BaseModel):
    """What was painted."""

    color: bool
    large: bool


@tool
def paint(red: bool) -> str:
    """Paint it."""
    return f"painted {red}"


def chat() -> None:
    answer = chatter.invoke(messages)
    assert answer.usage_metadata["output_tokens"] <= 6
    assert answer.response_metadata["model_name"] == model


def stream() -> None:
    assert "".join(str(chunk.content) for chunk in chatter.stream(messages)) == chatter.invoke(messages).content


def usage_in_stream() -> None:
    total = None
    for chunk in ChatOpenAI(**common, temperature=0, max_completion_tokens=6, stream_usage=True).stream(messages):
        total = chunk if total is None else total + chunk
    assert total.usage_metadata["output_tokens"] > 0


def json_schema() -> None:
    for method in ("json_schema", "function_calling"):
        assert isinstance(talker.with_structured_output(Painted, method=method).invoke(messages), Painted)


def tools_auto() -> None:
    assert isinstance(chatter.bind_tools([paint]).invoke(messages), AIMessage)


def tools_required() -> None:
    answer = talker.bind_tools([paint], tool_choice="any").invoke(messages)
    assert answer.tool_calls[0]["name"] == "paint"
    assert isinstance(answer.tool_calls[0]["args"]["red"], bool)


def tool_results() -> None:
    answer = talker.bind_tools([paint], tool_choice="paint").invoke(messages)
    call = answer.tool_calls[0]
    result = ToolMessage(paint.invoke(call["args"]), tool_call_id=call["id"])
    assert chatter.bind_tools([paint]).invoke([*messages, answer, result]).usage_metadata["input_tokens"] > 50


def logprobs() -> None:
    answer = chatter.bind(logprobs=True, top_logprobs=2).invoke(messages)
    assert len(answer.response_metadata["logprobs"]["content"][0]["top_logprobs"]) == 2


def embeddings() -> None:
    texts = OpenAIEmbeddings(**common, check_embedding_ctx_length=False, dimensions=8).embed_documents(["a", "b"])
    assert [len(vector) for vector in texts] == [8, 8]


def responses() -> None:
    answer = ChatOpenAI(**common, temperature=0, max_completion_tokens=20, use_responses_api=True).invoke("hi")
    assert answer.usage_metadata["output_tokens"] > 0


def errors() -> None:
    with pytest.raises(openai.BadRequestError) as error:
        chatter.bind(n=100).invoke(messages)
    assert error.value.param == "n"


run(
    {
        "chat": chat, "stream": stream, "usage in stream": usage_in_stream, "system, developer": chat,
        "JSON schema": json_schema, "tools auto": tools_auto, "tools required": tools_required,
        "tool results": tool_results, "logprobs": logprobs, "embeddings": embeddings, "dimensions": embeddings,
        "responses": responses, "errors": errors,
    }
)  # fmt: skip
