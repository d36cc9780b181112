"""Steps that the tests of the chat page share."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

_SECONDS = 30.0


def until(page: Page, condition: str) -> None:
    """Wait until an expression is true in the page (playwright's own way to wait needs `eval`, which the page forbids)."""
    deadline = time.monotonic() + _SECONDS
    while not page.evaluate(f"Boolean({condition})"):
        assert time.monotonic() < deadline, f"{condition}; the page says: {page.inner_text('body')[-500:]}"
        page.wait_for_timeout(30)


def ask(page: Page, question: str, *, wait: bool = True) -> Locator:
    """Ask, and give back the answer, when it has ended or when it is there."""
    before = page.locator(".message.assistant").count()
    page.fill("#question", question)
    page.press("#question", "Enter")
    answer = page.locator(".message.assistant").nth(before)
    answer.wait_for()
    if wait:
        until_state(page, "busy", before, value="false")
    return answer


def until_state(page: Page, what: str = "state", number: int = -1, *, value: str = "done") -> None:
    """Wait until an answer (the last one by default) is in a state, or no longer busy."""
    name = "data-state" if what == "state" else "aria-busy"
    until(
        page, f"[...document.querySelectorAll('.message.assistant')].at({number})?.getAttribute('{name}') === '{value}'"
    )


def said(answer: Locator) -> str:
    """The text of an answer, without thinking and buttons."""
    return answer.locator(".said").inner_text()
