"""An engine that dies costs the answers it was giving; a client that leaves costs nobody anything."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
from serving import THINKING_TEMPLATE, Server, ask, chat, model, start, wait_for

from edgepack.cli import execute as run
from edgepack.edge.serve.engine.watch import DeathLimit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow
LONG = {"max_tokens": 3000, "temperature": 0}


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough that a prompt takes many batches and an answer many moments."""
    folder = tmp_path_factory.mktemp("slow")
    size = {"layers": 6, "width": 512, "heads": 8, "kv_heads": 4, "head_width": 64, "feed_forward": 2048}
    return model(folder, "slow", template=THINKING_TEMPLATE, context=8192, **size)


@pytest.fixture(scope="module")
def fragile(slow_model: Path) -> Iterator[Server]:
    """A server with two places, whose engine may be killed."""
    running = start(slow_model, "--parallel", "2", "--ctx", "8192")
    yield running
    running.stop()


class Client(threading.Thread):
    """Asks, and keeps what came."""

    def __init__(self, server: Server, body: dict[str, Any]) -> None:
        super().__init__()
        self.server, self.body = server, body
        self.status, self.text, self.begun = 0, "", threading.Event()
        self.start()

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=120)
        connection.request("POST", "/v1/chat/completions", json.dumps(self.body))
        answer = connection.getresponse()
        self.status = answer.status
        with contextlib.suppress(http.client.IncompleteRead):
            while line := answer.readline():
                self.text += line.decode()
                if self.text.count("data:") > 3:
                    self.begun.set()
        self.begun.set()
        connection.close()


def chunks(text: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


@pytest.mark.parametrize("stream", [False, True])
def test_a_killed_engine_costs_an_error_and_the_next_request_is_answered(fragile: Server, stream: bool) -> None:
    before = ask(fragile, "/health")[1]["engine_restarts"]
    engine = fragile.engine()
    client = Client(fragile, chat(max_tokens=4000, ignore_eos=True, stream=stream))
    if stream:
        assert client.begun.wait(60)
    else:
        wait_for(lambda: engine.cpu_times().user > 0.5)
    engine.send_signal(signal.SIGKILL)
    client.join(60)
    if stream:
        assert chunks(client.text)[-1]["error"]["code"] == "engine_died"
        assert "[DONE]" not in client.text
    else:
        assert client.status == 503
        assert json.loads(client.text)["error"]["code"] == "engine_died"
    assert ask(fragile, "/health")[0] == 200
    assert ask(fragile, "/v1/chat/completions", chat())[0] == 200
    assert ask(fragile, "/health")[1]["engine_restarts"] == before + 1


def test_requests_that_wait_for_a_place_survive_the_engines_death(fragile: Server) -> None:
    engine = fragile.engine()
    answered = [Client(fragile, chat(max_tokens=4000, ignore_eos=True, stream=True)) for _ in range(2)]
    assert all(client.begun.wait(60) for client in answered)
    waiting = Client(fragile, chat())
    wait_for(lambda: ask(fragile, "/health")[1]["waiting"] == 1)
    engine.send_signal(signal.SIGKILL)
    for client in (*answered, waiting):
        client.join(60)
    assert all("engine_died" in client.text for client in answered)
    assert waiting.status == 200


def test_streams_do_not_cut_each_other_and_others_wait_their_turn(fragile: Server) -> None:
    alone = Client(fragile, chat(max_tokens=60, ignore_eos=True, stream=True))
    alone.join(60)
    together = [Client(fragile, chat(max_tokens=60, ignore_eos=True, stream=True)) for _ in range(5)]  # two places
    assert ask(fragile, "/v1/models")[0] == 200
    assert ask(fragile, "/")[0] == 200
    for client in together:
        client.join(120)
        assert client.status == 200
        assert chunks(client.text)[-1]["choices"][0]["finish_reason"] == "length"
        assert client.text.endswith("data: [DONE]\n\n")
        pieces = [chunk["choices"][0]["delta"] for chunk in chunks(client.text)]
        assert pieces == [chunk["choices"][0]["delta"] for chunk in chunks(alone.text)]


def leave(server: Server, body: dict[str, Any], used: float) -> None:
    """Ask, wait until the engine has worked on it for `used` seconds of CPU, and go away."""
    engine = server.engine()
    before = sum(engine.cpu_times()[:2])
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + data)
        wait_for(lambda: sum(engine.cpu_times()[:2]) - before > used)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("others", [False, True])
def test_a_client_that_leaves_during_its_prompt_is_not_worked_for(fragile: Server, stream: bool, others: bool) -> None:
    """Held against the same engine's whole work on such a prompt, in CPU time: machines differ, shares do not."""
    engine = fragile.engine()

    def spent() -> float:
        return float(sum(engine.cpu_times()[:2]))

    start_of_whole = spent()
    prompt = f"{stream}{others}" + "word " * 300  # of its own, so that no slot knows it
    whole = {**LONG, "messages": [{"role": "user", "content": f"whole {prompt}"}], "max_tokens": 1}
    assert ask(fragile, "/v1/chat/completions", whole)[0] == 200
    cost = spent() - start_of_whole
    other = Client(fragile, chat(max_tokens=40, ignore_eos=True, stream=True)) if others else None
    start_of_left = spent()
    left = {**LONG, "messages": [{"role": "user", "content": f"left {prompt}"}], "stream": stream}
    leave(fragile, left, used=cost / 10)
    if other is not None:
        other.join(120)
    wait_for(lambda: _rests(engine))
    assert spent() - start_of_left < 0.6 * cost + (0.3 * cost if others else 0)
    assert ask(fragile, "/v1/chat/completions", chat())[0] == 200


def _rests(engine: Any) -> bool:
    before = sum(engine.cpu_times()[:2])
    threading.Event().wait(0.3)
    return bool(sum(engine.cpu_times()[:2]) - before < 0.05)


def test_sigterm_lets_the_running_answer_end(slow_model: Path) -> None:
    running = start(slow_model, "--ctx", "1024")
    client = Client(running, chat(max_tokens=200, ignore_eos=True, stream=True))
    assert client.begun.wait(60)
    running.process.send_signal(signal.SIGTERM)
    client.join(60)
    assert chunks(client.text)[-1]["choices"][0]["finish_reason"] == "length"
    assert client.text.endswith("data: [DONE]\n\n")
    assert running.process.wait(60) == 0
    running.process.communicate()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", running.port))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_engine_is_left_behind(served_model: Path, number: signal.Signals) -> None:
    running = start(served_model)
    engine = running.engine()
    running.process.send_signal(number)
    running.process.communicate(timeout=60)
    assert running.process.returncode == (-9 if number == signal.SIGKILL else 130)
    wait_for(lambda: not engine.is_running())


def test_a_model_that_llama_cpp_refuses_is_an_error_with_its_reason(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from tiny_models import Shape, write_random

    whole = write_random(tmp_path / "broken.gguf", Shape())
    broken = whole.read_bytes().replace(b"blk.1.attn_q.weight", b"blk.1.attn_x.weight")
    whole.write_bytes(broken)
    assert run(["serve", str(whole), "--port", "0"]) == 10
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert "broken" in error
    assert "attn_q" in error


def test_an_engine_may_die_so_often_and_no_more_within_the_window() -> None:
    now = 0.0
    limit = DeathLimit(most=3, window=60, clock=lambda: now)
    for _ in range(2):
        limit.record()
    assert limit.wait() == 0
    now = 10.0
    limit.record()
    assert limit.wait() == 50
    now = 61.0
    assert limit.wait() == 0
    limit.record()
    limit.record()
    assert limit.wait() == 9  # the death at second 10 is the oldest of the last three


def test_places_are_kept_in_order_and_too_many_are_sent_away() -> None:
    from edgepack.edge.serve.places import Places
    from edgepack.edge.serve.protocol.errors import RequestError

    async def check() -> list[int]:
        places, order = Places(1, most_waiting=3), []

        async def one(number: int) -> None:
            async with places.place():
                order.append(number)
                await asyncio.sleep(0)

        async with places.place():
            waiting = [asyncio.create_task(one(number)) for number in range(3)]
            await asyncio.sleep(0)
            with pytest.raises(RequestError) as refused:
                await one(3)
            assert refused.value.status == 503
            assert refused.value.retry_after is not None
            waiting[1].cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        async with places.place():
            pass
        return order

    assert asyncio.run(check()) == [0, 2]
