"""Takes docs/chat-page.png: a real model answers in a real Chromium.

edgepack export SmolLM2-135M-Instruct --target gguf-q8 -o SmolLM2-135M-Instruct-Q8_0.gguf
edgepack serve SmolLM2-135M-Instruct-Q8_0.gguf --ctx 2048 &
python tools/chat_page_picture.py http://127.0.0.1:8080/ docs/chat-page.png
"""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

from playwright.sync_api import sync_playwright

if TYPE_CHECKING:
    from playwright.sync_api import Page

OTHERS = ["Three facts about the moon", "A polite reply to a late invoice"]
QUESTIONS = ["What is a loop, in one sentence?", "Write a short Python example of a for loop."]
SECONDS = 300


def ask(page: Page, question: str) -> None:
    """Ask, and wait for the answer's end."""
    page.fill("#question", question)
    page.press("#question", "Enter")
    page.wait_for_selector(".message.assistant[aria-busy=true]")
    page.wait_for_selector(".message:last-child[aria-busy=false]", timeout=SECONDS * 1000)


def main(url: str, picture: str) -> None:
    """Hold three conversations, show the last."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 720})
        page.goto(url)
        page.wait_for_selector("body[data-ready=yes]")
        page.click("#open-settings")
        for name, value in {"temperature": "0", "seed": "1", "length": "110"}.items():
            page.fill(f"#setting-{name}", value)
        page.click("text=Keep")
        for question in [*OTHERS, QUESTIONS[0]]:
            page.click("#new-chat")
            ask(page, question)
        for question in QUESTIONS[1:]:
            ask(page, question)
        page.mouse.move(1, 400)
        page.screenshot(path=picture)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
