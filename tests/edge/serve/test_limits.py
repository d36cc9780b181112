"""Clients that send too much, too slowly, or nothing at all cost others nothing."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from typing import TYPE_CHECKING

import psutil
import pytest
from serving import ask, chat, model, start, wait_for

from edgepack.edge.serve import bodies, connections

if TYPE_CHECKING:
    from pathlib import Path

    from serving import Server

pytestmark = pytest.mark.slow
HEAD = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=60)


def answer(connection: socket.socket) -> bytes:
    told = b""
    with contextlib.suppress(ConnectionResetError):
        while block := connection.recv(1 << 16):
            told += block
    return told


def memory(server: Server) -> int:
    return psutil.Process(server.process.pid).memory_info().rss


def test_a_body_of_60_mb_is_refused_before_it_is_read(server: Server) -> None:
    with connect(server) as connection:
        connection.sendall(f"{HEAD}Content-Length: 60000000\r\n\r\n".encode())  # and not a byte of it
        told = answer(connection)  # to its end: head and body may come in two pieces
        assert told.startswith(b"HTTP/1.1 413 ")
        assert str(bodies.MOST_TEXT).encode() in told
        assert b"connection: close" in told.lower()


def test_who_sends_all_of_it_hears_the_refusal(server: Server) -> None:
    body = b'{"messages": [{"role": "user", "content": "' + b"x" * (bodies.MOST_TEXT + 1000) + b'"}]}'
    status, told = ask(server, "/v1/chat/completions", body)
    assert status == 413
    assert told["error"]["code"] == "request_too_large"


def test_eight_large_bodies_at_once_take_no_memory(server: Server) -> None:
    before = memory(server)
    block = b"x" * (1 << 16)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(8)]
        for client in clients:  # no length is promised: only what comes can be counted
            client.sendall(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode())
        with contextlib.suppress(OSError):
            for _ in range(2 * bodies.MOST_TEXT // len(block)):
                for client in clients:
                    client.sendall(b"10000\r\n" + block + b"\r\n")
        assert ask(server, "/health")[0] == 200
        statuses = {answer(client)[:12] for client in clients}
    assert statuses <= {b"HTTP/1.1 413", b"HTTP/1.1 503", b""}
    assert memory(server) - before < 2 * bodies._MOST_TOGETHER


def test_health_answers_while_the_largest_prompt_is_being_read(server: Server) -> None:
    text = "x" * (bodies.MOST_TEXT - 200)
    with connect(server) as connection:
        body = json.dumps(chat(messages=[{"role": "user", "content": text}])).encode()
        connection.sendall(f"{HEAD}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        assert ask(server, "/health")[0] == 200
        assert b"context_length_exceeded" in answer(connection)


def test_half_open_connections_lock_nobody_out(tmp_path: Path) -> None:
    """More than the server keeps: the oldest that say nothing make room."""
    running = start(model(tmp_path))
    most = 1200
    try:
        with contextlib.ExitStack() as stack:
            silent = []
            with _many_files(most + 200):
                for _ in range(most):
                    connection = stack.enter_context(connect(running))
                    connection.sendall(HEAD.encode())  # the head never ends
                    silent.append(connection)
                assert ask(running, "/health")[0] == 200
                assert ask(running, "/v1/chat/completions", chat())[0] == 200
                kept = psutil.Process(running.process.pid).num_fds()
                assert kept < connections.MOST_CONNECTIONS + 100
    finally:
        running.stop()


@contextlib.contextmanager
def _many_files(count: int):
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    hard = before[1]
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"this test opens {count} files, the system allows {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], count), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_head_that_does_not_come_is_not_waited_for(served_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline is shortened through the environment of a server of its own."""
    code = (
        "import edgepack.edge.serve.connections as c; c.HEAD_SECONDS = 0.5\n"
        "from edgepack.cli import main; import sys; sys.argv = ['edgepack', *sys.argv[1:]]; main()"
    )
    import subprocess
    import sys

    command = [sys.executable, "-c", code, "serve", str(served_model), "--port", "0", "--threads", "1", "--json"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ.copy()
    )
    assert process.stdout is not None
    try:
        port = int(json.loads(process.stdout.readline())["url"].rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port), timeout=60) as silent:
            assert answer(silent) == b""  # closed without an answer
        with socket.create_connection(("127.0.0.1", port), timeout=60) as second:
            second.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200 OK" in second.recv(1 << 16)
            second.sendall(b"GET /hea")  # half of another head on a connection that was kept
            assert b"200" not in answer(second)
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_what_refused_requests_said_is_not_logged(served_model: Path) -> None:
    running = start(served_model)
    secret = "the-secret-of-my-life"
    for body in (
        chat(grammar=f"root ::= {secret} ("),
        chat(messages=[{"role": secret, "content": secret}]),
        chat(messages=[{"role": "user", "content": secret * 500}]),
        chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": f"#/{secret}"}}}),
        f'{{"{secret}'.encode(),
    ):
        assert ask(running, "/v1/chat/completions", body)[0] == 400
    assert ask(running, f"/v1/models/{secret}")[0] == 404
    with connect(running) as connection:
        connection.sendall(f"{secret} / HTTP/9\r\n{secret}\r\n\r\n".encode())
        assert answer(connection).startswith(b"HTTP/1.1 400")
    ask(running, "/v1/chat/completions", chat(messages=[{"role": "user", "content": secret}]))
    log = running.stop()
    assert secret not in log


def test_too_many_waiting_requests_are_told_when_to_come_again() -> None:
    from edgepack.edge.serve.protocol.errors import RequestError

    assert RequestError("x", status=503, retry_after=4.2).headers == [("Retry-After", "5")]


def test_a_client_that_promises_a_body_and_leaves_gives_its_share_back(server: Server) -> None:
    for _ in range(12):  # together more than the server holds at once
        with connect(server) as connection:
            connection.sendall(f"{HEAD}Content-Length: {bodies.MOST_TEXT}\r\n\r\n".encode() + b'{"')
    wait_for(lambda: ask(server, "/v1/chat/completions", chat())[0] == 200)
