"""The page as `edgepack serve` serves it, with a real model; what it may load; whether everybody can use it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from page_steps import ask, said, until, until_state
from tiny_models import Shape, string, write_random

from edgepack.edge.serve.page_files import PAGE_HEADERS, page_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from page_server import PageServer
    from playwright.sync_api import BrowserContext, Page

ROOT = Path(__file__).resolve().parents[3]
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_the_page_names_no_address_but_its_own() -> None:
    own = {path: file.body.decode() for path, file in page_files().items() if "/vendor/" not in path}
    assert "/" in own
    for path, text in own.items():
        found = [found for found in re.findall(r"https?://[^\s\"'`)]+", text) if "www.w3.org" not in found]
        assert found == [], path
    page = own["/"]
    assert not re.search(r"<script(?![^>]*src=\"page/)|<style|\son\w+=|style=", page)  # the policy forbids them
    assert set(re.findall(r"(?:src|href)=\"([^\"#]+)\"", page)) <= {path.lstrip("/") for path in own}


def test_modules_are_short_and_found() -> None:
    files = page_files()
    for path, file in files.items():
        if path.endswith(".js") and "/vendor/" not in path:
            lines = file.body.decode().splitlines()
            assert len(lines) < 300, path
            assert lines[0].startswith("// "), f"{path}: say what it is for"
            for name in re.findall(r"from \"\./([^\"]+)\"", file.body.decode()):
                assert f"/page/{name}" in files, f"{path} imports {name}"


def test_vendored_files_are_those_of_the_table() -> None:
    files = page_files()
    table = files["/page/vendor/VENDORED.md"].body.decode()
    rows = re.findall(r"\| (\S+) \| .*\((\S+\.LICENSE)\) \| ([0-9a-f]{64}) \|", table)
    assert {row[0] for row in rows} == {Path(name).name for name in files if re.search(r"vendor/.*js$", name)}
    for name, licence, digest in rows:
        assert hashlib.sha256(files[f"/page/vendor/{name}"].body).hexdigest() == digest
        assert f"/page/vendor/{licence}" in files
    axe = (ROOT / "tests/data/axe-core/README.md").read_text()
    assert hashlib.sha256((ROOT / "tests/data/axe-core/axe.min.js").read_bytes()).hexdigest() in axe


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`edgepack serve` with a random model."""
    path = tmp_path_factory.mktemp("page") / "served.gguf"
    write_random(path, Shape(extra={"tokenizer.chat_template": string(TEMPLATE)}))
    command = [sys.executable, "-m", "edgepack", "serve", str(path), "--port", "0", "--threads", "1", "--json"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ.copy()
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate(timeout=30)[1]
    yield f"{json.loads(line)['url']}/"
    process.terminate()
    process.communicate(timeout=30)


@pytest.mark.slow
def test_every_file_comes_with_its_type_and_the_policy(url: str) -> None:
    for path, file in page_files().items():
        with urllib.request.urlopen(url + path.lstrip("/"), timeout=30) as answer:
            assert answer.read() == file.body
            assert answer.headers["Content-Type"] == file.media_type
            assert {name: answer.headers[name] for name in PAGE_HEADERS} == PAGE_HEADERS
            again = urllib.request.Request(answer.url, headers={"If-None-Match": answer.headers["ETag"]})
        with pytest.raises(urllib.error.HTTPError) as unchanged:
            urllib.request.urlopen(again, timeout=30)
        with unchanged.value as error:
            assert error.code == 304


@pytest.mark.slow
@pytest.mark.parametrize("path", ["page/../server.py", "page/%2e%2e/server.py", "page/", "page/nothing.js"])
def test_no_other_file_is_served(url: str, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(url + path, timeout=30)
    with refused.value as error:
        assert error.code == 404


@pytest.mark.slow
def test_a_conversation_with_a_real_model(opened: Callable[..., Page], url: str) -> None:
    page = opened(url)
    until(page, "document.getElementById('model').textContent === 'served'")
    assert "512 tokens of context" in page.locator("#welcome").inner_text()
    page.click("#open-settings")
    page.fill("#setting-length", "8")
    page.fill("#setting-temperature", "0")
    page.click("text=Keep")
    # A random model says anything, control characters too: it must only be the same again.
    first = said(ask(page, "hello there"))
    assert "tokens" in page.locator(".speed").inner_text()
    page.locator("[data-act=regenerate]").click()
    page.get_by_text("2/2").wait_for()
    until_state(page, "busy", value="false")
    assert said(page.locator(".message.assistant")) == first
    page.reload()
    page.get_by_text("2/2").wait_for()
    assert said(page.locator(".message.assistant")) == first
    page.click("#open-settings")
    page.fill("#setting-length", "100")
    page.fill("#setting-temperature", "2")
    page.click("text=Keep")
    answer = ask(page, "now <b>at length</b>", wait=False)
    page.keyboard.press("Escape")  # a model this small may have ended already
    until_state(page, "busy", value="false")
    assert "<b>at length</b>" in page.locator(".message.user").nth(1).inner_text()
    assert answer.get_attribute("data-state") in ("stopped", "length", "done")
    ask(page, "é" * 600)
    assert "the context holds 512" in page.inner_text(".problem")


@pytest.mark.slow
@pytest.mark.parametrize("asked", [True, False])
def test_how_far_a_prompt_is_read_is_streamed_where_it_is_asked_for(url: str, asked: bool) -> None:
    messages = [{"role": "user", "content": f"{asked} {'long ' * 30}"}]
    body = {"messages": messages, "stream": True, "max_tokens": 2, "stream_options": {"include_usage": True}}
    body |= {"return_progress": True} if asked else {}
    request = urllib.request.Request(
        f"{url}v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    told = [chunk["prompt_progress"] for chunk in chunks if "prompt_progress" in chunk]
    assert bool(told) is asked
    assert all(0 <= one["processed"] <= one["total"] for one in told)
    assert chunks[-1]["usage"]["completion_tokens"] == 2


@pytest.mark.slow
def test_a_real_answer_fills_the_context_and_goes_on(opened: Callable[..., Page], url: str) -> None:
    page = opened(url)
    page.click("#open-settings")
    page.fill("#setting-schema", '{"type": "array", "items": {"enum": [true]}, "minItems": 300, "maxItems": 301}')
    page.click("text=Keep")
    answer = ask(page, "as many as you like")
    assert said(answer).startswith("[")  # the schema is followed
    assert "Cut: the model's context is full" in answer.inner_text()
    assert page.locator("#meter").inner_text() in ("511 of 512 tokens", "512 of 512 tokens")
    before = said(answer)
    page.click("#open-settings")
    page.fill("#setting-schema", "")
    page.fill("#setting-length", "6")
    page.click("text=Keep")
    answer.locator("[data-act=resume]").click()
    until_state(page, value="length")
    assert said(answer).startswith(before.strip()[:100])
    assert len(said(answer)) >= len(before)


AXE = ROOT / "tests/data/axe-core/axe.min.js"
# Everything that WCAG 2.2 at level AA asks for and can be checked by a program, and axe-core's best practices.
RULES = '{ runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"] }'


def violations(page: Page, rules: str = RULES) -> list[str]:
    found = page.evaluate(f"axe.run(document, {rules})")["violations"]
    return [f"{one['id']}: {[node['html'][:120] for node in one['nodes']]}" for one in found]


@pytest.mark.slow
def test_axe_finds_no_barrier(profile: BrowserContext, server: PageServer) -> None:
    profile.add_init_script(path=AXE)  # the page's own policy would not let it in
    page = profile.new_page()
    page.emulate_media(color_scheme="light", reduced_motion="reduce")
    page.goto(server.url)
    page.wait_for_selector("body[data-ready=yes]")
    ask(page, "say # Title\n\n```python\nprint(1)\n```\n\n- [ ] task\n\n| a |\n|---|\n| [1](https://example.org) |\n")
    ask(page, "think")
    page.locator(".message summary").last.click()
    ask(page, "fail please")
    ask(page, "say x full")
    assert violations(page) == []
    page.emulate_media(color_scheme="dark")
    colours = '{ runOnly: ["color-contrast"] }'
    assert violations(page, colours) == []
    page.click("#new-chat")  # the greeting
    assert violations(page, colours) == []
    page.click("#open-settings")
    assert violations(page) == []


@pytest.mark.slow
def test_the_keyboard_does_it_all(page: Page, server: PageServer) -> None:
    assert page.evaluate("document.activeElement.id") == "question"
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("line")
    page.keyboard.press("Enter")
    until_state(page)
    assert server.asked[-1]["messages"][-1]["content"] == "one\nline"
    until(page, "document.getElementById('announcement').textContent.startsWith('The model says: An answer')")
    page.keyboard.press("ArrowUp")
    page.keyboard.type("!")
    page.keyboard.press("Control+Enter")
    page.get_by_text("2/2").wait_for()
    page.keyboard.press("Control+k")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.press("Control+b")
    assert page.get_attribute("#toggle-sidebar", "aria-expanded") == "false"
    page.keyboard.press("Control+Shift+o")
    assert page.locator(".message").count() == 0
    assert page.evaluate("document.activeElement.id") == "question"


@pytest.mark.slow
def test_on_a_phone_nothing_is_wider_than_the_screen(profile: BrowserContext, server: PageServer) -> None:
    page = profile.new_page()
    page.set_viewport_size({"width": 360, "height": 640})
    page.goto(server.url)
    page.wait_for_selector("body[data-ready=yes]")
    ask(page, f"say {'wide' * 50}\n\n```\n{'code ' * 60}\n```\n")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.locator("#sidebar").evaluate("bar => bar.inert")
    page.click("#toggle-sidebar")
    page.get_by_role("link", name="say wide").click()
    until(page, "document.getElementById('sidebar').inert")
