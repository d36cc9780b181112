"""The server speaks OpenAI's protocol to its own client and keeps strangers out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tiny_models import Shape, string, write_random

from edgepack.cli import execute as run
from edgepack.edge.llama.options import RuntimeOptions
from edgepack.edge.llama.runtime import LoadedModel
from edgepack.edge.serve.server import ServerOptions, check_address, is_loopback
from edgepack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from openai import OpenAI

pytestmark = pytest.mark.slow
KEY = "a key"
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}\n{% endfor %}<|assistant|>"
)


def start(path: Path, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "edgepack", "serve", str(path), "--port", "0", "--threads", "1", "--json"]
    process = subprocess.Popen(
        [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ.copy()
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate(timeout=30)[1]
    return process, json.loads(line)["url"]


@pytest.fixture(scope="module")
def model_path(models: Path) -> Path:
    return write_random(models / "served.gguf", Shape(extra={"tokenizer.chat_template": string(TEMPLATE)}))


@pytest.fixture(scope="module")
def url(model_path: Path) -> Iterator[str]:
    process, address = start(model_path)
    yield address
    process.terminate()
    process.communicate(timeout=30)


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    from openai import OpenAI

    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as openai:
        yield openai


def test_completion_equals_runs_greedy_one(client: OpenAI, model_path: Path) -> None:
    answer = client.completions.create(
        model="any", prompt="hello", max_tokens=8, temperature=0, extra_body={"repeat_penalty": 1.0}
    )
    assert answer.usage.completion_tokens >= 8  # llama-cpp-python counts one that it has only looked at
    with LoadedModel(model_path, RuntimeOptions(threads=1)) as model:
        from edgepack.edge.llama.options import SamplingOptions

        tokens = list(model.generate(model.tokenize("hello"), SamplingOptions(temperature=0), 8))
    assert answer.choices[0].text.startswith("".join(token.text for token in tokens))


def test_chat_uses_the_models_template(client: OpenAI) -> None:
    greedy = {"max_tokens": 8, "temperature": 0}
    chat = client.chat.completions.create(model="any", messages=[{"role": "user", "content": "hi"}], **greedy)
    same = client.completions.create(model="any", prompt="<|user|>hi\n<|assistant|>", **greedy)
    assert chat.choices[0].message.content == same.choices[0].text.split("\n<|user|>")[0]
    assert chat.usage.prompt_tokens == same.usage.prompt_tokens


def test_streamed_pieces_make_the_whole_answer(client: OpenAI) -> None:
    arguments = {"model": "any", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, "temperature": 0}
    whole = client.chat.completions.create(**arguments).choices[0].message.content
    chunks = client.chat.completions.create(**arguments, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole


def test_embeddings_are_the_models_own_and_chats_go_on(client: OpenAI, model_path: Path) -> None:
    greedy = {"model": "any", "prompt": "hello", "max_tokens": 6, "temperature": 0}
    before = client.completions.create(**greedy).choices[0].text
    texts = ["hello world", "another text", "hello world"]
    answer = client.embeddings.create(model="any", input=texts)
    vectors = np.array([item.embedding for item in answer.data])
    plain = client.embeddings.create(model="any", input=texts[0], encoding_format="float").data[0].embedding
    with LoadedModel(model_path, RuntimeOptions(threads=1, embeddings=True)) as model:
        expected = model.embed(model.tokenize(texts[0], parse_special=True))
        expected /= np.linalg.norm(expected)  # as OpenAI's are
    np.testing.assert_allclose(vectors[0], expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(plain, vectors[0], rtol=1e-6)
    np.testing.assert_array_equal(vectors[0], vectors[2])
    assert not np.allclose(vectors[0], vectors[1])
    assert client.completions.create(**greedy).choices[0].text == before


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_is_an_error_with_both_numbers(client: OpenAI, stream: bool) -> None:
    from openai import BadRequestError

    messages = [{"role": "user", "content": "é" * 600}]
    with pytest.raises(BadRequestError, match=r"the prompt has \d+ tokens, the context holds 512") as caught:
        client.chat.completions.create(model="any", messages=messages, stream=stream)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(BadRequestError, match="the context holds 512"):
        client.completions.create(model="any", prompt="é" * 600, stream=stream)


@pytest.mark.parametrize("stream", [False, True])
def test_a_template_that_refuses_is_an_error_that_says_why(client: OpenAI, stream: bool) -> None:
    from openai import BadRequestError

    with pytest.raises(BadRequestError, match="no tools here"):
        client.chat.completions.create(
            model="any", messages=[{"role": "tool", "content": "x", "tool_call_id": "1"}], stream=stream
        )


def status_of(url: str, headers: dict[str, str], body: bytes | None = None) -> int:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_other_websites_and_other_names_are_refused(url: str) -> None:
    models = f"{url}/v1/models"
    assert status_of(models, {}) == 200
    assert status_of(models, {"Origin": url}) == 200
    assert status_of(models, {"Origin": "https://evil.example"}) == 403
    assert status_of(models, {"Host": "evil.example"}) == 403
    assert status_of(f"{url}/v1/chat/completions", {"Origin": "null"}, b"{}") == 403


@pytest.mark.parametrize(
    ("path", "body"),
    [
        *((path, body) for path in ("chat/completions", "completions", "embeddings") for body in (b"", b"{", b"[]")),
        ("chat/completions", b'{"messages": 3}'),
        ("chat/completions", b'{"messages": [3]}'),
        ("chat/completions", b'{"prompt": "x"}'),
        ("completions", b'{"prompt": {}}'),
        ("embeddings", b'{"input": [-1]}'),
    ],
)
def test_a_broken_request_is_an_error_and_the_server_lives(url: str, path: str, body: bytes) -> None:
    assert 400 <= status_of(f"{url}/v1/{path}", {}, body) < 600
    assert status_of(f"{url}/health", {}) == 200


def test_without_the_key_nothing_is_told(model_path: Path) -> None:
    process, address = start(model_path, "--api-key", KEY)
    try:
        body = json.dumps({"messages": [{"role": "user", "content": "é" * 600}]}).encode()
        chat = f"{address}/v1/chat/completions"
        assert status_of(chat, {}, body) == 401
        assert status_of(chat, {"Authorization": "Bearer wrong"}, body) == 401
        assert status_of(chat, {"Authorization": f"Bearer {KEY}"}, body) == 400
        assert status_of(f"{address}/v1/models", {}) == 401
        assert status_of(f"{address}/v1/embeddings", {}, b'{"input": "x"}') == 401
        assert status_of(f"{address}/v1/embeddings", {"Authorization": f"Bearer {KEY}"}, b'{"input": "x"}') == 200
    finally:
        process.terminate()
        process.communicate(timeout=30)


def test_a_public_address_without_a_key_is_refused(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", str(tiny), "--host", "0.0.0.0"]) == 2
    assert "--api-key" in capfd.readouterr().err
    with pytest.raises(UsageError):
        check_address(ServerOptions(host="192.168.1.7"))
    check_address(ServerOptions(host="0.0.0.0", api_key="x"))
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "[::1]", "localhost", "127.9.9.9")] == [True] * 5
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "example.org", "10.0.0.1")] == [False] * 4


def test_a_port_in_use_is_wrong_usage(url: str, tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", str(tiny), "--port", url.rsplit(":", 1)[1]]) == 2
    assert "cannot listen" in capfd.readouterr().err
