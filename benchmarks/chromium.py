"""The system's Chromium, headless, driven through playwright."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from typing import Any

from playwright.async_api import Browser, Error, Page, async_playwright

from engine.errors import PersonaStreamError

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--use-fake-device-for-media-stream")
SOUND_AT_ONCE = "--autoplay-policy=no-user-gesture-required"
WINDOW_PX = {"width": 1280, "height": 860}
START_TIMEOUT_MS = 120_000
POLL_S = 0.1
LOGGED = ("error", "warning")


class PageError(PersonaStreamError):
    """Chromium is missing or does not start, the page threw an error, or a condition in it did not become true."""

    code = "page"


def program(path: str | None = PROGRAM) -> str:
    """The path of Chromium. Raises PageError where it is not installed."""
    if path is None:
        raise PageError("no chromium, chromium-browser or google-chrome on PATH; apt-get install chromium")
    return path


@contextlib.asynccontextmanager
async def launch(*flags: str) -> AsyncIterator[Browser]:
    """Start Chromium with an empty profile. Raises PageError."""
    async with async_playwright() as playwright:
        try:
            browser = await playwright.chromium.launch(
                executable_path=program(),
                args=[*FLAGS, *flags],
                ignore_default_args=["--mute-audio"],
                timeout=START_TIMEOUT_MS,
            )
        except Error as error:
            raise PageError(f"chromium did not start: {error}") from error
        try:
            yield browser
        finally:
            await browser.close()


@contextlib.asynccontextmanager
async def open_page(
    browser: Browser, url: str, script: str = "", *, microphone: bool = True, **context_options: Any
) -> AsyncIterator[Page]:
    """Open `url` in a new context: pages share no cookies, storage or permissions.

    `script` runs before the page's own scripts; the page's Content-Security-Policy is bypassed only then, since the
    script may load code. `microphone`: whether the page may use it. `context_options` go to playwright's `new_context`.
    Raises PageError, also at the end of the block where an exception in the page was not caught.
    """
    permissions = ["microphone"] if microphone else []  # an empty list denies all
    options = {"viewport": WINDOW_PX, "bypass_csp": bool(script), "permissions": permissions} | context_options
    try:
        async with await browser.new_context(**options) as context:
            if script:
                await context.add_init_script(script)
            page = await context.new_page()
            await page.goto(url, wait_until="commit")
            yield page
            if errors := await page.page_errors():
                raise PageError(f"{url}: uncaught in the page: {'; '.join(map(str, errors))}; expected no error")
    except Error as error:
        raise PageError(f"{url}: {error}") from error


async def observe(page: Page, expression: str) -> Any:
    """The value of a JavaScript expression. `page.evaluate` counts as a gesture of the user; this does not.

    Raises PageError.
    """
    session = await page.context.new_cdp_session(page)
    try:
        options = {"expression": expression, "awaitPromise": True, "returnByValue": True}
        result = await session.send("Runtime.evaluate", options)
    finally:
        await session.detach()
    if "exceptionDetails" in result:
        raise PageError(f"{expression}: {result['exceptionDetails']}")
    return result["result"].get("value")


async def until(page: Page, condition: str, timeout_s: float = 120.0) -> None:
    """Wait until a JavaScript expression is true; it may fail while the page loads. PageError shows the page."""
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                with contextlib.suppress(PageError, Error):
                    if await observe(page, condition):
                        return
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        text = await observe(page, "document.body?.innerText")
        raise PageError(f"not true after {timeout_s:g} s: {condition}\n{await console(page)}\n{text}") from None


async def console(page: Page) -> list[str]:
    """The errors, warnings and failed requests in the page's console, without the icon, which no page names."""
    lines = [(line.text, line.location["url"]) for line in await page.console_messages() if line.type in LOGGED]
    return [f"{text} ({url})" for text, url in lines if not url.endswith("/favicon.ico")]
