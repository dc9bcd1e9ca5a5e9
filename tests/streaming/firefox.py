"""The system's Firefox, headless, driven through WebDriver BiDi, which it speaks itself."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

PROGRAM = shutil.which("firefox-esr") or shutil.which("firefox")
SETTINGS = {
    "media.autoplay.default": 0,
    "media.autoplay.blocking_policy": 0,
    "browser.shell.checkDefaultBrowser": False,
}
START_TIMEOUT_S = 60.0


class FirefoxPage:
    """One page; `evaluate` has the name and the meaning of playwright's."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._numbers, self._context = socket, itertools.count(1), ""

    async def open(self, url: str) -> None:
        await self._call("session.new", capabilities={})
        tree = await self._call("browsingContext.getTree")
        self._context = tree["contexts"][0]["context"]
        await self._call("browsingContext.navigate", context=self._context, url=url, wait="complete")

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited; it must be one that JSON can hold."""
        wrapped = f"(async () => JSON.stringify(await ({expression})) ?? 'null')()"
        outcome = await self._call(
            "script.evaluate", expression=wrapped, target={"context": self._context}, awaitPromise=True
        )
        assert outcome["type"] == "success", outcome
        return json.loads(outcome["result"]["value"])

    async def _call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while (reply := json.loads(await self._socket.recv())).get("id") != number:
            pass
        assert reply["type"] == "success", reply
        return reply["result"]


@contextlib.asynccontextmanager
async def firefox_page(url: str) -> AsyncIterator[FirefoxPage]:
    """Start Firefox with an empty profile and open `url`."""
    assert PROGRAM
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        lines = (f'user_pref("{name}", {json.dumps(value)});' for name, value in SETTINGS.items())
        Path(profile, "user.js").write_text("\n".join(lines))
        command = (PROGRAM, "--headless", "--no-remote", "--profile", profile, "--remote-debugging-port", "0")
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, env=None
        )
        assert process.stderr
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while not (
                    address := re.search(
                        rb"WebDriver BiDi listening on (ws://\S+)", line := await process.stderr.readline()
                    )
                ):
                    assert line, "Firefox ended before it listened"
            reading = asyncio.create_task(process.stderr.read())  # or its pipe fills up
            async with connect(f"{address[1].decode()}/session", max_size=None) as socket:
                page = FirefoxPage(socket)
                await page.open(url)
                yield page
            reading.cancel()
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()
