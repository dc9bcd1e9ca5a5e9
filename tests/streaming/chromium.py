"""A headless Chromium driven over the DevTools protocol: just enough to open a page and measure inside it."""

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
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
    "--window-size=1280,860",
    "--remote-debugging-port=0",
)
START_TIMEOUT_S = 60.0


class PageError(Exception):
    """The page threw, or its answer did not come."""


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
        async with asyncio.timeout(timeout_s):
            found = await self._answers[number]
        if "error" in found:
            raise PageError(f"{method}: {found['error']}")
        return dict(found["result"])

    async def evaluate(self, expression: str, timeout_s: float = 60.0) -> Any:
        """The value of a JavaScript expression; promises are awaited."""
        result = await self.call(
            "Runtime.evaluate",
            timeout_s,
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        if "exceptionDetails" in result:
            raise PageError(json.dumps(result["exceptionDetails"])[:1500])
        return result["result"].get("value")

    async def screenshot(self, path: Path) -> None:
        shot = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

    async def resize(self, width: int, height: int, *, mobile: bool = False) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile
        )


@contextlib.asynccontextmanager
async def open_page(url: str, script: str = "") -> AsyncIterator[Page]:
    """Start Chromium with a profile of its own, run `script` before the page's own scripts, and open `url`."""
    assert PROGRAM, "no chromium on PATH"
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            PROGRAM,
            *FLAGS,
            f"--user-data-dir={profile}",
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "HOME": profile},
        )
        try:
            port = await _debugging_port(process)
            async with aiohttp.ClientSession() as http, asyncio.TaskGroup() as tasks:
                async with http.get(f"http://127.0.0.1:{port}/json/list") as reply:
                    tabs = [tab for tab in await reply.json() if tab["type"] == "page"]
                socket = await http.ws_connect(tabs[0]["webSocketDebuggerUrl"], max_msg_size=0)
                page = Page(socket)
                listening = tasks.create_task(page.listen())
                draining = tasks.create_task(_drain(process))
                try:
                    await page.call("Page.enable")
                    await page.call("Runtime.enable")
                    await page.call("Page.setBypassCSP", enabled=True)  # `script` may load code of its own
                    await page.call("Page.addScriptToEvaluateOnNewDocument", source=script)
                    await page.call("Page.navigate", url=url)
                    yield page
                finally:
                    listening.cancel()
                    draining.cancel()
                    await socket.close()
        finally:
            if process.returncode is None:
                process.terminate()
                try:
                    async with asyncio.timeout(10):
                        await process.wait()
                except TimeoutError:
                    process.kill()
                    await process.wait()


async def _debugging_port(process: asyncio.subprocess.Process) -> int:
    assert process.stderr
    seen = b""
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
