"""A headless Chromium driven over the DevTools protocol: just enough to open pages and measure inside them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from engine.errors import PersonaStreamError

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-features=Translate,MediaRouter,OptimizationHints",
    "--use-fake-device-for-media-stream",
    "--window-size=1280,860",
    "--remote-debugging-port=0",
)
SOUND_AT_ONCE = "--autoplay-policy=no-user-gesture-required"
START_TIMEOUT_S = 120.0


class PageError(PersonaStreamError):
    """There is no Chromium, it does not start, the page threw, or its answer did not come."""

    code = "page"


def program() -> str:
    """Where Chromium is. Raises PageError where it is not."""
    if PROGRAM is None:
        raise PageError("no chromium, chromium-browser or google-chrome on PATH; apt-get install chromium")
    return PROGRAM


class Page:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse):
        self._socket = socket
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.console: list[str] = []

    async def listen(self) -> None:
        async for message in self._socket:
            found = json.loads(message.data)
            answer = self._answers.pop(found.get("id", 0), None)
            if answer and not answer.done():
                answer.set_result(found)
            elif found.get("method") == "Runtime.exceptionThrown":
                self.console.append(json.dumps(found["params"]["exceptionDetails"])[:600])
            elif found.get("method") == "Runtime.consoleAPICalled" and found["params"]["type"] in ("error", "warning"):
                self.console.append(json.dumps(found["params"]["args"])[:600])

    async def call(self, method: str, timeout_s: float = 60.0, **params: Any) -> dict[str, Any]:
        number = next(self._ids)
        self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        try:
            async with asyncio.timeout(timeout_s):
                found = await self._answers[number]
        except TimeoutError:
            raise PageError(f"{method}: no answer after {timeout_s} s; expected one, is the machine busy?") from None
        if "error" in found:
            raise PageError(f"{method}: {found['error']}")
        return dict(found["result"])

    async def evaluate(self, expression: str, timeout_s: float = 60.0, *, gesture: bool = True) -> Any:
        """The value of a JavaScript expression; promises are awaited. `gesture`: as if a person had done it."""
        result = await self.call(
            "Runtime.evaluate",
            timeout_s,
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
            userGesture=gesture,
        )
        if "exceptionDetails" in result:
            raise PageError(json.dumps(result["exceptionDetails"])[:1500])
        return result["result"].get("value")

    async def until(self, condition: str, timeout_s: float = 60.0) -> None:
        """Wait until a JavaScript expression is true; it may fail while the page loads. PageError shows the page."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    with contextlib.suppress(PageError):
                        if await self.evaluate(condition, gesture=False):
                            return
                    await asyncio.sleep(0.1)
        except TimeoutError:
            text = await self.evaluate("document.body?.innerText", gesture=False)
            raise PageError(f"not so after {timeout_s} s: {condition}\n{self.console}\n{text}") from None

    async def press(self, key: str, code: int) -> None:
        """Press and let go one key by its DOM name and Windows virtual key code."""
        text = {"Enter": "\r", " ": " "}.get(key)
        for kind in ("keyDown", "keyUp"):
            about = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": code}
            await self.call("Input.dispatchKeyEvent", type=kind, **about, **({"text": text} if text else {}))

    async def screenshot(self, path: Path) -> None:
        shot = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

    async def resize(self, width: int, height: int, *, mobile: bool = False) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile
        )


class Browser:
    """A running Chromium. Each page that it opens is a person of its own: no cookies, storage or permissions shared."""

    def __init__(self, port: int, http: aiohttp.ClientSession, control: Page):
        self._port, self._http, self._control = port, http, control

    @contextlib.asynccontextmanager
    async def open(self, url: str, script: str = "", *, microphone: bool = True) -> AsyncIterator[Page]:
        """Run `script` before the page's own scripts, and open `url`, with or without leave to use the microphone.

        The page's own security policy is off only where there is a script, which may load code of its own.
        """
        context = (await self._control.call("Target.createBrowserContext"))["browserContextId"]
        leave = {"permission": {"name": "microphone"}, "setting": "granted" if microphone else "denied"}
        await self._control.call("Browser.setPermission", **leave, browserContextId=context)
        found = await self._control.call("Target.createTarget", url="about:blank", browserContextId=context)
        address = f"http://127.0.0.1:{self._port}/devtools/page/{found['targetId']}"
        async with connected(self._http, address) as page:
            await page.call("Page.enable")
            await page.call("Runtime.enable")
            if script:
                await page.call("Page.setBypassCSP", enabled=True)
                await page.call("Page.addScriptToEvaluateOnNewDocument", source=script)
            await page.call("Page.navigate", url=url)
            try:
                yield page
            finally:
                await self._control.call("Target.disposeBrowserContext", browserContextId=context)


@contextlib.asynccontextmanager
async def connected(http: aiohttp.ClientSession, address: str) -> AsyncIterator[Page]:
    """The DevTools end at `address`, listened to for the time of the block."""
    async with http.ws_connect(address, max_msg_size=0) as socket:
        page = Page(socket)
        listening = asyncio.create_task(page.listen())
        try:
            yield page
        finally:
            listening.cancel()


@contextlib.asynccontextmanager
async def launch(*flags: str) -> AsyncIterator[Browser]:
    """Start Chromium with a profile of its own. Raises PageError."""
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            program(),
            *FLAGS,
            *flags,
            f"--user-data-dir={profile}",
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "HOME": profile},
        )
        draining = None
        try:
            port = await _debugging_port(process)
            draining = asyncio.create_task(_drain(process))
            async with aiohttp.ClientSession() as http:
                async with http.get(f"http://127.0.0.1:{port}/json/version") as reply:
                    address = (await reply.json())["webSocketDebuggerUrl"]
                async with connected(http, address) as control:
                    yield Browser(port, http, control)
        finally:
            if draining:
                draining.cancel()
            if process.returncode is None:
                process.terminate()
                try:
                    async with asyncio.timeout(10):
                        await process.wait()
                except TimeoutError:
                    process.kill()
                    await process.wait()


@contextlib.asynccontextmanager
async def open_page(url: str, script: str = "") -> AsyncIterator[Page]:
    """One page in a Chromium of its own, with sound."""
    async with launch(SOUND_AT_ONCE) as browser, browser.open(url, script) as page:
        yield page


async def _debugging_port(process: asyncio.subprocess.Process) -> int:
    assert process.stderr
    seen = b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(START_TIMEOUT_S):
            while line := await process.stderr.readline():
                seen += line
                if line.startswith(b"DevTools listening on ws://"):
                    return int(line.split(b":")[2].split(b"/")[0])
    raise PageError(f"chromium did not start: {seen[-800:].decode(errors='replace')}")


async def _drain(process: asyncio.subprocess.Process) -> None:
    assert process.stderr
    while await process.stderr.readline():
        pass
