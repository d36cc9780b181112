"""Who may ask: hosts, other websites, keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from serving import ask, ask_all, chat, start

from edgepack.edge.serve.server import ServerOptions, check_address
from edgepack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from serving import Server

pytestmark = pytest.mark.slow
APP = "https://app.example"
KEY = "a key"


@pytest.fixture(scope="module")
def guarded(served_model: Path) -> Iterator[Server]:
    running = start(served_model, "--allow-origin", APP, "--api-key", KEY)
    yield running
    running.stop()


@pytest.mark.parametrize("host", ["[", "[::1", "localhost:99999999", "localhost:x", "", "http://[x", "a b", "x/y", "é"])
def test_an_odd_host_is_a_400(server: Server, host: str) -> None:
    for path, body in (("/v1/models", None), ("/v1/chat/completions", chat())):
        assert ask(server, path, body, {"Host": host})[0] == 400


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example"])
def test_another_name_is_not_answered_to(server: Server, host: str) -> None:
    assert ask(server, "/v1/models", None, {"Host": host})[0] == 403


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost", "https://localhost:1"])
def test_other_websites_are_refused(server: Server, origin: str) -> None:
    status, _answer, headers = ask_all(server, "/v1/chat/completions", chat(), {"Origin": origin})
    assert status == 403
    assert "access-control-allow-origin" not in headers
    status, _answer, headers = ask_all(server, "/v1/models", None, {"Origin": origin}, "OPTIONS")
    assert status == 403
    assert "access-control-allow-origin" not in headers


def test_its_own_page_is_answered(server: Server) -> None:
    assert (
        ask(server, "/v1/chat/completions", chat(), {"Origin": server.url, "Host": f"127.0.0.1:{server.port}"})[0]
        == 200
    )


def test_an_allowed_website_is_answered_and_may_read_it(guarded: Server) -> None:
    asked = {"Origin": APP, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    status, _answer, headers = ask_all(guarded, "/v1/chat/completions", None, asked, "OPTIONS")
    assert status == 204
    assert headers["access-control-allow-origin"] == APP
    assert headers["access-control-allow-headers"] == "authorization"
    for stream in (False, True):
        told = {"Origin": APP, "Authorization": f"Bearer {KEY}"}
        status, _answer, headers = ask_all(guarded, "/v1/chat/completions", chat(stream=stream), told)
        assert (status, headers["access-control-allow-origin"], headers["vary"]) == (200, APP, "Origin")
    status, _answer, headers = ask_all(guarded, "/v1/models", None, {"Origin": APP})  # an error can be read too
    assert (status, headers["access-control-allow-origin"]) == (401, APP)
    assert ask(guarded, "/v1/models", None, {"Origin": f"{APP}.evil", "Authorization": f"Bearer {KEY}"})[0] == 403


def test_without_the_key_nothing_is_told_but_the_page_and_whether_it_lives(guarded: Server) -> None:
    for path, body in (
        ("/v1/models", None), ("/v1/models/served", None), ("/props", None), ("/v1/chat/completions", chat()),
        ("/v1/completions", {"prompt": "x"}), ("/v1/embeddings", {"input": "x"}), ("/v1/responses", {"input": "x"}),
        ("/v1/messages", chat()), ("/v1/rerank", {}), ("/tokenize", {"content": "x"}), ("/nothing", None),
    ):  # fmt: skip
        assert ask(guarded, path, body)[0] == 401, path
        assert ask(guarded, path, body, {"Authorization": "Bearer wrong"})[0] == 401
        assert ask(guarded, path, body, {"Authorization": "Bearer é"})[0] == 401
    assert ask(guarded, "/health")[0] == 200
    assert ask(guarded, "/")[0] == 200
    assert ask(guarded, "/v1/models", None, {"Authorization": f"Bearer {KEY}"})[0] == 200
    assert ask(guarded, "/v1/messages", chat(), {"x-api-key": KEY})[0] == 200


@pytest.mark.parametrize("origin", ["*", "app.example", "https://", "https://app.example/", "ftp://app.example"])
def test_an_origin_that_is_none_is_wrong_usage(origin: str) -> None:
    with pytest.raises(UsageError, match="--allow-origin"):
        check_address(ServerOptions(origins=(origin,)))
