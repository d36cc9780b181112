"""What the browser keeps: conversations through reloads and in two tabs, search, names, exports and imports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from page_steps import ask, said, until, until_state

if TYPE_CHECKING:
    from collections.abc import Callable

    from page_server import PageServer
    from playwright.sync_api import Page

pytestmark = [pytest.mark.slow]


def names(page: Page) -> list[str]:
    return page.locator("#chats .name").all_inner_texts()


def test_a_tab_looks_on_while_another_writes_and_may_stop_it(
    page: Page, opened: Callable[..., Page], server: PageServer
) -> None:
    ask(page, "one")
    other = opened(page.url)
    assert said(other.locator(".message.assistant")) == "An answer to one, 1 messages"
    ask(page, "wait", wait=False)
    other.get_by_text("begun wait").wait_for()
    other.get_by_role("button", name="Stop the answer").click()
    for tab in (page, other):
        until_state(tab, value="stopped")


def test_two_tabs_that_write_into_one_conversation_overwrite_nothing(
    page: Page, opened: Callable[..., Page], server: PageServer
) -> None:
    ask(page, "one")
    other = opened(page.url)
    page.locator(".message.user").hover()
    page.locator(".message.user [data-act=edit]").click()
    page.fill(".edit textarea", "wait")
    page.click(".edit .primary")  # a branch, which the other tab does not follow
    page.get_by_text("begun wait").wait_for()
    assert said(ask(other, "two")) == "An answer to two, 3 messages"
    server.go.set()
    until_state(page)
    assert said(page.locator(".message.assistant")).endswith("ended")
    until(other, "document.querySelector('.message.user .count')?.textContent === '1/2'")
    kept = [message["content"] for message in exported(page)["conversations"][0]["messages"]]
    assert {"one", "wait", "two"} <= set(kept)
    assert len(kept) == 6


def test_a_new_conversation_shows_up_in_the_other_tab(page: Page, opened: Callable[..., Page]) -> None:
    other = opened()
    ask(page, "from the first tab")
    other.get_by_role("link", name="from the first tab").wait_for()
    assert other.locator(".message").count() == 0


def test_an_answer_that_a_reload_interrupts_keeps_what_came(page: Page, server: PageServer) -> None:
    ask(page, "wait", wait=False)
    page.get_by_text("begun wait").wait_for()
    page.reload()
    until_state(page, value="lost")
    assert page.locator(".message.assistant .said").inner_text().startswith("begun wait")
    assert "the page was closed" in page.locator(".cut").inner_text()
    server.go.set()
    page.locator("[data-act=resume]").click()
    until_state(page)
    assert page.locator(".message.assistant .said").inner_text().endswith("and the rest.")


def test_a_draft_outlives_a_reload(page: Page) -> None:
    page.fill("#question", "half a thou")
    page.reload()
    until(page, "document.getElementById('question').value === 'half a thou'")


def test_search_finds_names_and_what_was_said(page: Page) -> None:
    ask(page, "say something about giraffes")
    page.click("#new-chat")
    ask(page, "plain")
    page.fill("#search", "GIRAFFE")
    until(page, "document.querySelectorAll('#chats li').length === 1")
    assert "giraffes" in page.locator("#chats .snippet").inner_text()
    page.fill("#search", "nobody said this")
    page.get_by_text("Nothing found.").wait_for()
    page.fill("#search", "")
    until(page, "document.querySelectorAll('#chats li').length === 2")
    assert names(page) == ["plain", "say something about giraffes"]


def test_rename_and_delete(page: Page) -> None:
    ask(page, "one")
    page.locator("#chats li").hover()
    page.locator("#chats [data-act=rename]").click()
    page.keyboard.type("A <b>better</b> name")
    page.keyboard.press("Enter")
    page.get_by_role("link", name="A <b>better</b> name").wait_for()
    assert page.locator("#chat-name").inner_text() == "A <b>better</b> name"
    ask(page, "two")  # going on keeps the name
    page.reload()
    page.get_by_role("link", name="A <b>better</b> name").wait_for()
    page.locator("#chats li").hover()
    page.locator("#chats [data-act=delete]").click()
    page.click("#choice >> text=Cancel")
    assert names(page) == ["A <b>better</b> name"]
    page.locator("#chats li").hover()
    page.locator("#chats [data-act=delete]").click()
    page.locator("#choice .primary").click()
    page.get_by_text("No conversations yet.").wait_for()
    assert page.locator(".message").count() == 0


def exported(page: Page) -> dict[str, Any]:
    with page.expect_download() as download:
        page.click("#export-all")
    return json.loads(Path(download.value.path()).read_text(encoding="utf-8"))


def test_one_conversation_is_exported_to_read_or_to_import(page: Page) -> None:
    ask(page, "say **bold**")
    saved = {}
    for form in ("Markdown", "JSON"):
        page.locator("#chats li").hover()
        page.locator("#chats [data-act=export]").click()
        with page.expect_download() as download:
            page.locator(f"#choice >> text={form}").click()
        saved[download.value.suggested_filename] = Path(download.value.path()).read_text(encoding="utf-8")
    assert saved["say _bold_.md"] == "# say **bold**\n\n## You\n\nsay **bold**\n\n## Model\n\n**bold**\n"
    assert len(json.loads(saved["say _bold_.json"])["conversations"][0]["messages"]) == 2


def imports(page: Page, tmp_path: Path, text: str) -> str:
    """Import a file; gives back what the page says to it."""
    path = tmp_path / "chats.json"
    path.write_text(text, encoding="utf-8")
    page.evaluate("document.getElementById('notice').textContent = ''")
    page.set_input_files("#import-file", path)
    until(page, "document.getElementById('notice').textContent")
    return page.locator("#notice").inner_text()


def test_what_is_exported_is_imported_again_branches_and_all(page: Page, tmp_path: Path) -> None:
    ask(page, "éne")
    page.locator("[data-act=regenerate]").click()
    page.get_by_text("2/2").wait_for()
    until_state(page)
    first = exported(page)
    assert "1 conversation imported" in imports(page, tmp_path, json.dumps(first))
    until(page, "document.querySelectorAll('#chats li').length === 2")
    page.get_by_text("2/2").wait_for()
    again = exported(page)["conversations"]
    fields = ("role", "content", "state", "created")
    one, other = ([[message[field] for field in fields] for message in chat["messages"]] for chat in again)
    assert sorted(one) == sorted(other)
    assert len({message["id"] for chat in again for message in chat["messages"]}) == 6  # nothing is overwritten


def test_a_verdict_is_imported_with_its_answer_and_nothing_else_for_one(page: Page, tmp_path: Path) -> None:
    told = {"confidence": 0.5, "route": "escalate", "threshold": 0.7, "in_range": True}
    ask(page, f"judge {json.dumps(told)}")
    record = exported(page)
    imports(page, tmp_path, json.dumps(record))
    until(page, "document.querySelectorAll('#chats li').length === 2")
    assert page.locator(".verdict").inner_text() == "50 % likely right · better ask elsewhere"
    answer = next(each for each in record["conversations"][0]["messages"] if each["role"] == "assistant")
    answer["verdict"]["confidence"] = "<b>sure</b>"
    imports(page, tmp_path, json.dumps(record))
    until(page, "document.querySelectorAll('#chats li').length === 3")
    until(page, "document.querySelectorAll('.verdict').length === 0")


def test_a_transcript_of_the_terminal_becomes_a_conversation(page: Page, tmp_path: Path, server: PageServer) -> None:
    messages = [
        {"role": "system", "content": "Be kind"}, {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho", "reasoning_content": "hm"},
    ]  # fmt: skip
    assert "1 conversation imported" in imports(page, tmp_path, json.dumps({"messages": messages}))
    page.get_by_text("ho", exact=True).wait_for()
    ask(page, "and now")
    said_before = [{"role": message["role"], "content": message["content"]} for message in messages]
    assert server.asked[-1]["messages"] == [*said_before, {"role": "user", "content": "and now"}]
    assert page.locator(".thinking pre").first.text_content() == "hm"


MESSAGE = {"id": "a", "parent": None, "role": "user", "content": "x"}


def export_of(*messages: dict[str, Any]) -> str:
    chat = {"id": "c", "name": "n", "tip": "a", "messages": list(messages)}
    return json.dumps({"format": "edgepack-conversations", "version": 1, "conversations": [chat]})


NO_EXPORTS = [
        ("{", "not JSON"),
        ("[]", "expected an export"),
        ('{"format": "edgepack-conversations", "version": 2}', "version 1 expected, got 2"),
        ('{"format": "edgepack-conversations", "version": 1, "conversations": 3}', "conversations: expected a list"),
        (export_of({**MESSAGE, "content": 3}), "messages[0].content: expected a text"),
        (export_of({**MESSAGE, "role": "root"}), "expected user or assistant"),
        (export_of({**MESSAGE, "parent": "b"}), "no message has this id"),
        (export_of({**MESSAGE, "parent": "a"}), "circle"),
        (export_of(MESSAGE, MESSAGE), "two messages have one id"),
        (export_of({**MESSAGE, "files": [{"kind": "image", "name": "x", "data": "https://evil.example/x.png"}]}), "an image"),
        ('{"messages": [{"role": "user"}]}', "content: expected a text"),
]  # fmt: skip


def test_a_file_that_is_no_export_is_refused_with_the_place(page: Page, tmp_path: Path) -> None:
    for text, reason in NO_EXPORTS:
        assert reason in imports(page, tmp_path, text)
        assert names(page) == []
