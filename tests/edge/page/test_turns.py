"""What happens between a question and its answer: cuts, thinking, failures, branches, and what the model is sent."""

from __future__ import annotations

import json
import struct
import zlib
from typing import TYPE_CHECKING, Any

import pytest
from page_server import CONTEXT, KEY, PageServer
from page_steps import ask, said, until, until_state

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Page

pytestmark = [pytest.mark.slow]


def contents(body: dict[str, Any]) -> list[str]:
    return [message["content"] for message in body["messages"]]


def test_each_question_is_sent_with_what_came_before(page: Page, server: PageServer) -> None:
    assert said(ask(page, "one")) == "An answer to one, 1 messages"
    assert said(ask(page, "two")) == "An answer to two, 3 messages"
    assert contents(server.asked[1]) == ["one", "An answer to one, 1 messages", "two"]
    assert server.asked[1]["stream_options"] == {"include_usage": True}
    assert "12.5 tokens/s" in page.locator(".speed").last.inner_text()
    assert page.locator("#meter").inner_text().endswith(f"of {CONTEXT:,} tokens")
    assert page.locator("#meter").inner_text().startswith("31 ")  # as the server counted, nothing guessed


def test_markdown_is_shown_and_html_stays_text(page: Page) -> None:
    text = (
        "say # Title\n\n**bold** <b>tag</b> <img src=x onerror=alert(1)>\n\n```python\nprint(1)\n```\n\n"
        "[bad](javascript:alert(1)) [good](https://example.org) ![far](https://example.org/x.png)\n\n| a |\n|---|\n| 1 |\n"
    )
    body = ask(page, text).locator(".said")
    assert body.locator("h1").inner_text() == "Title"
    assert body.locator("strong").inner_text() == "bold"
    assert "<b>tag</b> <img src=x onerror=alert(1)>" in body.inner_text()
    assert body.locator("img, script, iframe").count() == 0
    assert body.locator("a").evaluate_all("all => all.map(a => a.getAttribute('href'))") == [
        None, "https://example.org", "https://example.org/x.png",
    ]  # fmt: skip
    assert body.locator("a").nth(1).get_attribute("rel") == "noopener noreferrer nofollow"
    assert body.locator("td").inner_text() == "1"
    assert body.locator(".code-head span").inner_text() == "python"
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    body.locator(".code-head button").click()
    page.get_by_text("Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == "print(1)"


HOSTILE = [
    "<script>window.hacked = 1</script>",
    "<svg onload='window.hacked = 1'><iframe src='javascript:window.hacked = 1'>",
    "[a](<javascript:window.hacked=1>) [b](data:text/html,<script>window.hacked=1</script>)",
    '![c](x" onerror="window.hacked=1)',
    '```html" onclick="window.hacked=1\n<img src=x onerror=window.hacked=1>\n```',
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=window.hacked=1&gt;'>",
    "[d]: javascript:window.hacked=1\n[d] <a href='javascript:window.hacked=1'>e</a> <form action=/x><input></form>",
]


def test_no_markup_of_a_models_does_anything(page: Page) -> None:
    for text in HOSTILE:
        body = ask(page, f"say {text}").locator(".said")
        assert (
            body.locator("script, iframe, svg:not(.icon), img, style, form, math, a[href^=j], a[href^=d]").count() == 0
        )
        for link in body.locator("a").all():
            link.dispatch_event("click")
        assert body.inner_text().strip()
    page.wait_for_timeout(50)
    assert page.evaluate("window.hacked") is None


def test_thinking_is_folded_and_not_sent_again(page: Page, server: PageServer) -> None:
    for question, thought, answer in (("think", "Let me see.", "Seen."), ("inline", "Hidden thought", "Plain answer.")):
        shown = ask(page, question)
        assert said(shown) == answer
        assert not shown.locator("details").evaluate("fold => fold.open")
        shown.locator("summary").click()
        assert shown.locator("details pre").inner_text() == thought
    ask(page, "next")
    assert contents(server.asked[-1]) == ["think", "Seen.", "inline", "Plain answer.", "next"]


VERDICT = {"confidence": 0.834, "route": "answer", "threshold": 0.71, "in_range": True}


def test_how_likely_an_answer_is_right_stands_below_it(page: Page) -> None:
    assert ask(page, "one").locator(".verdict").count() == 0, "a file that nobody calibrated says nothing"
    sure = ask(page, f"judge {json.dumps(VERDICT)}").locator(".verdict")
    assert sure.inner_text() == "83 % likely right"
    assert "From 71 % on" in (sure.get_attribute("title") or "")
    unsure = ask(page, f"judge {json.dumps({**VERDICT, 'confidence': 0.3, 'route': 'escalate'})}").locator(".verdict")
    assert unsure.inner_text() == "30 % likely right · better ask elsewhere"
    assert "unsure" in (unsure.get_attribute("class") or "")
    long = ask(page, f"judge {json.dumps({**VERDICT, 'route': 'escalate', 'in_range': False})}").locator(".verdict")
    assert "none of those was of this length" in (long.get_attribute("title") or "")
    page.reload()
    page.wait_for_selector("body[data-ready=yes]")
    assert page.locator(".verdict").all_inner_texts()[0] == "83 % likely right"


@pytest.mark.parametrize("told", [{"confidence": None}, {"confidence": 7}, {"confidence": "<b>"}, {"threshold": None}])
def test_a_verdict_that_is_none_is_not_shown(page: Page, told: dict[str, Any]) -> None:
    assert ask(page, f"judge {json.dumps({**VERDICT, **told})}").locator(".verdict").count() == 0


def test_an_answer_cut_by_its_length_is_continued_inside_itself(page: Page, server: PageServer) -> None:
    answer = ask(page, "say Half length")
    assert (
        "Cut: the answer reached the length" not in answer.inner_text()
    )  # no length was asked for: the context is full
    page.click("#open-settings")
    page.fill("#setting-length", "1")
    page.click("text=Keep")
    answer = ask(page, "say Half length")
    assert "Cut: the answer reached the length" in answer.inner_text()
    answer.locator("[data-act=resume]").click()
    until_state(page)
    assert said(answer) == "Half length and the rest."
    last = server.asked[-1]
    assert last["messages"][-1] == {"role": "assistant", "content": "Half length"}
    assert (last["add_generation_prompt"], last["continue_final_message"]) == (False, True)


def test_a_full_context_is_told_and_continued_without_the_oldest_turns(page: Page, server: PageServer) -> None:
    for number in range(3):
        ask(page, f"say {number} {'word ' * 150}")
    answer = ask(page, f"say {'word ' * 150} full")
    assert "Cut: the model's context is full" in answer.inner_text()
    assert page.locator("#meter").get_attribute("class") == "full"
    answer.locator("[data-act=resume]").click()
    until_state(page)
    assert said(answer).endswith("full and the rest.")
    assert len(server.asked[-1]["messages"]) < len(server.asked[-2]["messages"])
    assert "without the" in answer.inner_text()


def test_a_question_too_long_for_the_context_can_be_asked_without_the_oldest(page: Page, server: PageServer) -> None:
    ask(page, "one")
    answer = ask(page, "too long")
    assert "2000 tokens" in answer.locator(".problem").inner_text()
    answer.get_by_text("Ask without the oldest messages").click()
    until_state(page)
    assert contents(server.asked[-1]) == ["too long"]
    assert "Answered without the 2 oldest messages" in answer.inner_text()


def test_a_failed_question_is_kept_and_can_be_tried_again(page: Page, server: PageServer) -> None:
    ask(page, "one")
    answer = ask(page, "fail please")
    assert "the model tripped" in answer.locator(".problem").inner_text()
    page.reload()
    answer = page.locator(".message.assistant").nth(1)
    assert "the model tripped" in answer.locator(".problem").inner_text()
    answer.get_by_text("Try again").click()
    until_state(page, "busy", value="false")
    assert len(server.asked) == 3
    ask(page, "two")  # what failed is not sent again
    assert contents(server.asked[-1]) == ["one", "An answer to one, 1 messages", "two"]


def test_a_connection_that_ends_leaves_what_came_and_offers_more(page: Page) -> None:
    answer = ask(page, "drop it")
    assert said(answer).startswith("An answer to drop it")
    assert "Cut: the connection ended" in answer.inner_text()
    assert answer.locator("[data-act=resume]").is_visible()


def test_how_far_a_long_prompt_is_read_is_told(page: Page, server: PageServer) -> None:
    answer = ask(page, "slow", wait=False)
    answer.get_by_text("Reading: 45 %").wait_for()
    assert server.asked[-1]["return_progress"] is True
    server.go.set()
    until_state(page)
    assert "Reading" not in answer.inner_text()


def test_stop_ends_the_answer_here_and_at_the_server(page: Page, server: PageServer) -> None:
    answer = ask(page, "wait", wait=False)
    until(page, "document.querySelector('.message:last-child .said').innerText.length > 12")
    page.keyboard.press("Escape")
    until_state(page, value="stopped")
    assert said(answer).startswith("begun wait")
    assert "Stopped by you" in answer.inner_text()
    page.wait_for_timeout(200)
    assert server.left == ["wait"]
    ask(page, "next")
    assert server.asked[-1]["messages"][1]["content"].startswith("begun wait")


def test_regenerating_and_editing_make_branches_to_go_between(page: Page, server: PageServer) -> None:
    ask(page, "one")
    page.locator(".message.assistant [data-act=regenerate]").click()
    page.get_by_text("2/2").wait_for()
    page.locator(".message.user").hover()
    page.locator(".message.user [data-act=edit]").click()
    page.fill(".edit textarea", "other")
    page.click(".edit .primary")
    page.get_by_text("An answer to other, 1 messages").wait_for()
    assert page.locator(".message").count() == 2
    assert contents(server.asked[-1]) == ["other"]
    page.locator(".message.user [data-act=left]").click()
    page.get_by_text("An answer to one, 1 messages").wait_for()
    assert page.locator(".message.assistant .count").inner_text() == "2/2"
    page.reload()
    page.get_by_text("An answer to one, 1 messages").wait_for()
    ask(page, "two")
    page.locator(".message.user").nth(1).hover()
    page.locator(".message.assistant").nth(0).hover()
    page.locator(".message.assistant").nth(0).locator("[data-act=branch]").click()
    until(page, "document.querySelectorAll('.message').length === 2")
    assert page.locator("#chats li").count() == 2
    assert page.locator("#chat-name").inner_text() == "one (branch)"


def test_a_new_chat_during_an_answer_is_new_and_the_answer_goes_on(page: Page, server: PageServer) -> None:
    ask(page, "wait here", wait=False)
    until(page, "document.querySelector('.message:last-child .said').innerText.length > 12")
    page.click("#new-chat")
    assert page.locator(".message").count() == 0
    assert page.locator("#chats .running").count() == 1
    ask(page, "one")
    assert contents(server.asked[-1]) == ["one"]
    assert page.locator(".message").count() == 2
    server.go.set()
    until(page, "!document.querySelector('#chats .running')")
    assert page.locator(".message").count() == 2
    page.get_by_role("link", name="wait here").click()
    page.get_by_text("ended").wait_for()
    assert page.locator(".message").count() == 2


def test_it_scrolls_along_only_while_the_reader_is_at_the_end(page: Page, server: PageServer) -> None:
    ask(page, "long")
    place = "document.getElementById('scroller').scrollTop"
    at_end = "(s => s.scrollHeight - s.scrollTop - s.clientHeight < 50)(document.getElementById('scroller'))"
    assert page.evaluate(at_end)
    ask(page, "wait", wait=False)
    until(page, at_end)
    page.evaluate("document.getElementById('scroller').scrollTop = 100")
    until(page, "!document.getElementById('latest').hidden")
    shown = page.locator(".message:last-child .said").inner_text()
    until(page, f"document.querySelector('.message:last-child .said').innerText.length > {len(shown) + 5}")
    assert page.evaluate(place) == 100
    page.click("#latest")
    until(page, at_end)
    server.go.set()


def test_settings_are_sent_and_belong_to_the_conversation(page: Page, server: PageServer) -> None:
    schema = '{"type": "object", "properties": {"ok": {"type": "boolean"}}}'
    page.click("#open-settings")
    assert page.get_attribute("#setting-temperature", "placeholder") == "model's default: 0.8"
    page.fill("#setting-schema", "{")
    page.click("text=Keep")
    assert page.locator("#settings").evaluate("dialog => dialog.open")  # what is no schema is not taken
    page.fill("#setting-system", "Be kind")
    page.fill("#setting-temperature", "0.3")
    page.fill("#setting-seed", "7")
    page.fill("#setting-schema", schema)
    page.select_option("#setting-thinking", "off")
    page.click("text=Keep")
    ask(page, "one")
    sent = server.asked[-1]
    assert sent["messages"][0] == {"role": "system", "content": "Be kind"}
    assert (sent["temperature"], sent["seed"]) == (0.3, 7)
    assert "max_tokens" not in sent
    assert sent["chat_template_kwargs"] == {"enable_thinking": False}
    assert sent["response_format"]["json_schema"]["schema"] == json.loads(schema)
    page.click("#new-chat")
    page.click("#open-settings")
    assert page.input_value("#setting-system") == "Be kind"
    page.fill("#setting-system", "")
    page.uncheck("#setting-everywhere")
    page.click("text=Keep")
    ask(page, "two")
    assert contents(server.asked[-1]) == ["two"]
    page.get_by_role("link", name="one").click()
    page.get_by_text("An answer to one").wait_for()
    ask(page, "three")
    assert server.asked[-1]["messages"][0]["content"] == "Be kind"


def png() -> bytes:
    """One red pixel."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0\xff\0\0")) + chunk(b"IEND", b"")


def test_files_go_with_a_question_where_the_model_takes_them(page: Page, server: PageServer, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("naïve notes", encoding="utf-8")
    (tmp_path / "binary.bin").write_bytes(b"\xff\x00\x01")
    (tmp_path / "dot.png").write_bytes(png())
    page.set_input_files("#file", [tmp_path / "notes.txt", tmp_path / "binary.bin"])
    page.get_by_text("neither UTF-8 text nor an image").wait_for()
    page.set_input_files("#file", tmp_path / "dot.png")
    page.get_by_text("does not see images").wait_for()
    assert page.locator("#files li").count() == 1
    ask(page, "read")
    assert contents(server.asked[-1]) == ["File notes.txt:\n```\nnaïve notes\n```\n\nread"]
    assert page.locator(".message.user .attached summary").inner_text() == "notes.txt"
    server.vision = True
    page.reload()
    page.get_by_text("An answer").wait_for()
    page.wait_for_selector("body[data-ready=yes]")
    page.set_input_files("#file", tmp_path / "dot.png")
    page.wait_for_selector("#files img")
    ask(page, "look")
    (image, text) = server.asked[-1]["messages"][-1]["content"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert text == {"type": "text", "text": "look"}
    assert page.locator(".message.user img").get_attribute("alt") == "dot.png"


def test_the_key_is_asked_for_and_lives_in_the_tab_alone(profile: Any, server: PageServer) -> None:
    server.key = KEY
    page = profile.new_page()
    page.goto(server.url)
    page.wait_for_selector("#settings[open]")
    page.fill("#setting-key", KEY)
    page.click("text=Keep")
    page.wait_for_selector("body[data-ready=yes]")
    assert said(ask(page, "one")) == "An answer to one, 1 messages"
    assert KEY not in page.evaluate("JSON.stringify(localStorage)")
