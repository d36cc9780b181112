"""What can be served: thinking models, encoders, cross-encoders, archives, adapters, other templates and contexts."""

from __future__ import annotations

import json
import socket
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from lora_adapters import write_adapter
from references.llama_embeddings import llama_token_embeddings
from references.tiny_checkpoints import TinyModel, random_model, write_checkpoint
from references.tiny_encoders import EMBEDDERS, RANKERS
from serving import THINKING_TEMPLATE, Server, ask, chat, model, start

from edgepack.cli import execute as run
from edgepack.edge.llama.engines import choose_engine
from edgepack.edge.llama.options import RuntimeOptions, SamplingOptions
from edgepack.export.gguf_file import write_gguf
from edgepack.export.mapped_model import open_model
from edgepack.export.plan import plan_export
from edgepack.packaging.pack import pack_archive
from edgepack.quant.types.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

pytestmark = pytest.mark.slow
PLAIN_TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}<|assistant|>"


@pytest.fixture
def serving() -> Iterator[Callable[..., AbstractContextManager[Server]]]:
    """Starts servers that end with their block."""
    from contextlib import contextmanager

    @contextmanager
    def one(path: Path, *options: str) -> Iterator[Server]:
        running = start(path, *options)
        try:
            yield running
        finally:
            running.stop()

    return one


def test_thinking_is_told_apart_in_every_protocol(tmp_path: Path, serving: Any) -> None:
    with serving(model(tmp_path, template=THINKING_TEMPLATE)) as server:
        greedy = chat(max_tokens=8, ignore_eos=True)
        _status, whole = ask(server, "/v1/chat/completions", greedy)
        thoughts = whole["choices"][0]["message"]["reasoning_content"]
        assert thoughts
        assert whole["choices"][0]["message"]["content"] == ""
        _status, text = ask(server, "/v1/chat/completions", {**greedy, "stream": True})
        chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == thoughts
        _status, message = ask(server, "/v1/messages", greedy)
        assert message["content"] == [{"type": "thinking", "thinking": thoughts, "signature": ""}]
        _status, response = ask(server, "/v1/responses", {"input": "hi", "max_output_tokens": 8, "ignore_eos": True})
        assert response["output"][0]["type"] == "reasoning"
        assert response["status"] == "incomplete"


@pytest.mark.parametrize("engine", ["llama-cpp-python", "xllamacpp"])
def test_a_greedy_answer_is_runs(served_model: Path, server: Server, engine: Any) -> None:
    _status, answer = ask(server, "/v1/completions", {"prompt": "hello", "max_tokens": 12, "temperature": 0})
    with choose_engine(engine).open(served_model, RuntimeOptions(n_ctx=1024, threads=1)) as opened:
        tokens = opened.generate(opened.tokenize("hello"), SamplingOptions(temperature=0), 12)
        text = "".join(token.text for token in tokens)
    # The server lets a character that the last token leaves unfinished out, `run` shows that it is unfinished.
    assert text.rstrip("\ufffd") == answer["choices"][0]["text"].rstrip("\ufffd")


def test_an_archive_is_served_and_its_name_has_no_folder(tmp_path: Path, served_model: Path, serving: Any) -> None:
    archive = pack_archive(served_model, tmp_path / "packed.edgepack").output
    with serving(archive) as server:
        assert ask(server, "/v1/models")[1]["data"][0]["id"] == "packed"
        status, answer = ask(server, "/v1/chat/completions", chat())
        assert status == 200
        assert answer["model"] == "packed"
        assert str(tmp_path) not in json.dumps(answer)


def test_an_adapter_changes_the_answers(tmp_path: Path, server: Server, served_model: Path, serving: Any) -> None:
    adapter = write_adapter(tmp_path / "adapter.gguf", served_model, ("blk.0.attn_q.weight", "blk.1.ffn_down.weight"))
    asked = chat(max_tokens=12)
    with serving(served_model, "--adapter", f"{adapter}:3") as other:
        assert ask(other, "/v1/chat/completions", asked)[1] != ask(server, "/v1/chat/completions", asked)[1]


def test_other_templates_and_contexts(tmp_path: Path, serving: Any) -> None:
    bare = model(tmp_path, "bare", template=None)
    with serving(bare, "--ctx", "100", "--parallel", "2") as server:
        assert ask(server, "/v1/chat/completions", chat())[1]["error"]["param"] == "messages"
        assert ask(server, "/v1/responses", {"input": "x"})[1]["error"]["param"] == "input"
        assert ask(server, "/v1/completions", {"prompt": "x" * 60, "max_tokens": 3})[0] == 200
        props = ask(server, "/props")[1]
        assert props["total_slots"] == 2
        assert 100 <= props["default_generation_settings"]["n_ctx"] < 512
    with serving(bare, "--template", "chatml") as server:
        assert ask(server, "/v1/chat/completions", chat())[0] == 200
    jinja = tmp_path / "own.jinja"
    jinja.write_text("{{ messages[0].content }}", encoding="utf-8")
    with serving(bare, "--template", str(jinja)) as server:
        told = ask(server, "/v1/chat/completions", chat(max_tokens=6))[1]["choices"][0]["message"]["content"]
        plain = ask(server, "/v1/completions", {"prompt": "hi", "max_tokens": 6, "temperature": 0})
        assert told == plain[1]["choices"][0]["text"]


def test_a_template_without_tools_calls_one_where_it_must(tmp_path: Path, serving: Any) -> None:
    parameters = {"type": "object", "properties": {"red": {"type": "boolean"}}, "required": ["red"]}
    tool = {"type": "function", "function": {"name": "paint", "parameters": parameters}}
    with serving(model(tmp_path, template=PLAIN_TEMPLATE)) as server:
        status, answer = ask(server, "/v1/chat/completions", chat(tools=[tool]))
        assert (status, answer["error"]["param"]) == (400, "tools")
        asked = chat(tools=[tool], tool_choice="required", max_tokens=200)
        _status, answer = ask(server, "/v1/chat/completions", asked)
        assert answer["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "paint"


def exported(tiny: TinyModel, tokenizer: Path, folder: Path) -> Path:
    write_checkpoint(random_model(tiny), folder / "checkpoint", tokenizer, fused_experts=tiny.fused_experts)
    write_gguf(plan_export(open_model(folder / "checkpoint"), find_target("f32")), folder / f"{tiny.name}.gguf")
    return folder / f"{tiny.name}.gguf"


def test_an_encoder_gives_embeddings_and_nothing_else(tmp_path: Path, books: Path, serving: Any) -> None:
    tiny = next(tiny for tiny in EMBEDDERS if tiny.name == "bert")
    path = exported(tiny, books, tmp_path)
    with serving(path) as server:
        _status, told = ask(server, "/v1/embeddings", {"input": ["the sea", "a ship"]})
        tokens = ask(server, "/extras/tokenize", {"input": "the sea"})[1]["tokens"]
        expected = llama_token_embeddings(path, tokens).mean(axis=0)  # the file names no pooling
        np.testing.assert_allclose(told["data"][0]["embedding"], expected / np.linalg.norm(expected), atol=1e-3)
        for endpoint, body in (("chat/completions", chat()), ("completions", {"prompt": "x"}), ("rerank", {})):
            status, answer = ask(server, f"/v1/{endpoint}", body)
            assert (status, answer["error"]["param"]) == (400, "model")


def test_a_cross_encoder_ranks_and_nothing_else(tmp_path: Path, books: Path, serving: Any) -> None:
    tiny = next(tiny for tiny in RANKERS if tiny.name == "bert-ranker")
    with serving(exported(tiny, books, tmp_path)) as server:
        documents = ["the sea is wide", "a ship", "nothing at all"]
        status, told = ask(server, "/v1/rerank", {"query": "the sea", "documents": documents})
        assert status == 200, told
        assert told["model"] == tiny.name
        scores = {item["index"]: item["relevance_score"] for item in told["results"]}
        assert sorted(scores) == [0, 1, 2]
        _status, turned = ask(server, "/v1/rerank", {"query": "the sea", "documents": documents[::-1], "top_n": 1})
        assert len(turned["results"]) == 1
        best = max(scores, key=scores.__getitem__)
        assert turned["results"][0]["index"] == 2 - best
        np.testing.assert_allclose(turned["results"][0]["relevance_score"], scores[best], rtol=1e-4)
        for body in ({}, {"query": "x"}, {"query": "x", "documents": [3]}, {"query": 3, "documents": ["x"]}):
            assert ask(server, "/v1/rerank", body)[0] == 400
        status, answer = ask(server, "/v1/embeddings", {"input": "x"})
        assert (status, answer["error"]["param"]) == (400, "model")


def test_prompts_count_once_each_and_answers_all(server: Server) -> None:
    def used(prompt: Any, n: int) -> tuple[int, int]:
        asked = {"prompt": prompt, "n": n, "max_tokens": 3, "temperature": 0, "ignore_eos": True}
        usage = ask(server, "/v1/completions", asked)[1]["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        return usage["prompt_tokens"], usage["completion_tokens"]

    one, other = used("hello", 1)[0], used("a longer one", 1)[0]
    assert used("hello", 3) == (one, 9)
    assert used(["hello", "a longer one"], 1) == (one + other, 6)


def test_a_projector_that_is_none_is_an_error(
    tmp_path: Path, served_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", str(served_model), "--mmproj", str(tmp_path / "absent.gguf"), "--port", "0"]) == 2
    assert "absent.gguf" in capfd.readouterr().err
    (tmp_path / "none.gguf").write_bytes(b"GGUF" + bytes(100))
    assert run(["serve", str(served_model), "--mmproj", str(tmp_path / "none.gguf"), "--port", "0"]) == 6


@pytest.mark.skipif(sys.platform == "win32", reason="there it listens on a port of this machine")
def test_the_engine_is_reached_by_this_user_with_the_secret_alone(server: Server) -> None:
    engine = server.engine()
    assert not engine.net_connections("inet")
    path = next(item.laddr for item in engine.net_connections("unix") if str(item.laddr).endswith("engine.sock"))
    assert stat.S_IMODE(Path(path).parent.stat().st_mode) == 0o700
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(path)
        stranger.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
        assert stranger.recv(1 << 12).startswith(b"HTTP/1.1 401")
    assert "secret" not in " ".join(engine.cmdline())


def test_the_other_engine_has_no_server(served_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", str(served_model), "--engine", "llama-cpp-python", "--port", "0"]) == 2
    assert "--engine" in capfd.readouterr().err
