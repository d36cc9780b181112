"""One browser and one scripted server for the tests of the chat page; each test has a profile of its own."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from page_server import PageServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, BrowserContext, Page

_TIMEOUT = 30_000  # milliseconds; a busy machine is no failure


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium, without a window; playwright's event loop runs as long, so it ends with the module."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        yield started
        started.close()


@pytest.fixture(scope="session")
def _running() -> Iterator[PageServer]:
    with PageServer() as running:
        yield running


@pytest.fixture
def server(_running: PageServer) -> Iterator[PageServer]:
    """The scripted server, as new."""
    _running.reset()
    yield _running
    _running.go.set()


@pytest.fixture
def profile(browser: Browser) -> Iterator[BrowserContext]:
    """A browser profile that nobody has used; what its pages complain of fails the test."""
    context = browser.new_context(viewport={"width": 1000, "height": 700}, reduced_motion="reduce")  # frames cost time
    context.set_default_timeout(_TIMEOUT)
    problems: list[str] = []
    context.on("weberror", lambda error: problems.append(str(error.error)))
    # Failed requests are in the console, too; those are what some tests are about.
    context.on(
        "console",
        lambda line: (
            problems.append(line.text) if line.type == "error" and "Failed to load resource" not in line.text else None
        ),
    )
    yield context
    context.close()
    assert problems == []


@pytest.fixture
def opened(profile: BrowserContext, server: PageServer) -> Callable[..., Page]:
    """Opens the page in another tab of the profile."""

    def open_page(url: str | None = None) -> Page:
        page = profile.new_page()
        page.goto(url or server.url)
        page.wait_for_selector("body[data-ready=yes]")
        return page

    return open_page


@pytest.fixture
def page(opened: Callable[..., Page]) -> Page:
    """The page, ready to chat."""
    return opened()
