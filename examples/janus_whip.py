"""WHIP for Janus: publishes what arrives into a video room, whose viewers Janus serves. docs/scale.md has the recipe.

    janus &                                  # apt-get install janus
    python examples/janus_whip.py --room 7   # then publish to whip://127.0.0.1:8090/whip

It passes offer and answer on. Media and feedback go to Janus itself: a late viewer's request for a key frame reaches
the publisher, which answers it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web

KEEPALIVE_S = 25  # Janus ends a session that is silent for 60 s
SDP = "application/sdp"


class Janus:
    """The video rooms of a Janus, over its HTTP interface."""

    def __init__(self, http: aiohttp.ClientSession, base: str = "/janus"):
        self._http, self._base = http, base

    async def handle(self) -> str:
        """The path of a new handle of the video room, in a session of its own."""
        session = await self._post(self._base, {"janus": "create"})
        path = f"{self._base}/{session['data']['id']}"
        handle = await self._post(path, {"janus": "attach", "plugin": "janus.plugin.videoroom"})
        return f"{path}/{handle['data']['id']}"

    async def ask(self, handle: str, body: dict, jsep: dict | None = None) -> dict:
        """One request to the video room; returns the reply. Raises HTTPBadGateway for an error of Janus."""
        message = {"janus": "message", "body": body} | ({"jsep": jsep} if jsep else {})
        reply = await self._post(handle, message)
        while reply["janus"] != "event" and "plugindata" not in reply:
            async with self._http.get(session_of(handle), params={"maxev": "1"}) as polled:
                reply = await polled.json(content_type=None)
        if "error" in reply["plugindata"]["data"]:
            raise web.HTTPBadGateway(text=f"Janus: {reply['plugindata']['data']['error']}")
        return reply

    async def keep_alive(self, handle: str) -> None:
        while True:
            await asyncio.sleep(KEEPALIVE_S)
            await self._post(session_of(handle), {"janus": "keepalive"})

    async def end(self, handle: str) -> None:
        await self._post(session_of(handle), {"janus": "destroy"})

    async def _post(self, path: str, message: dict) -> dict:
        async with self._http.post(path, json=message | {"transaction": secrets.token_hex(6)}) as reply:
            return await reply.json(content_type=None)


def session_of(handle: str) -> str:
    return handle.rpartition("/")[0]


class Whip:
    """The endpoint. feeds: handles of the publishers by the id under which viewers of the room find them."""

    def __init__(self, janus: Janus, room: int):
        self.feeds: dict[int, str] = {}
        self._janus, self._room = janus, room
        self._keeping: dict[int, asyncio.Task] = {}
        self._count = 0

    def app(self) -> web.Application:
        app = web.Application()
        app.add_routes([web.post("/whip", self._publish), web.delete("/whip/{feed}", self._end)])
        app.on_cleanup.append(self._stop)
        return app

    async def _publish(self, request: web.Request) -> web.Response:
        self._count += 1
        feed, handle = self._count, await self._janus.handle()
        jsep = {"type": "offer", "sdp": await request.text()}
        body = {"request": "joinandconfigure", "ptype": "publisher", "room": self._room, "id": feed}
        reply = await self._janus.ask(handle, body, jsep)
        self.feeds[feed] = handle
        self._keeping[feed] = asyncio.create_task(self._janus.keep_alive(handle))
        return web.Response(
            status=201, text=reply["jsep"]["sdp"], content_type=SDP, headers={"Location": f"/whip/{feed}"}
        )

    async def _end(self, request: web.Request) -> web.Response:
        feed = int(request.match_info["feed"])
        if feed not in self.feeds:
            raise web.HTTPNotFound(text=f"no publisher {feed}")
        self._keeping.pop(feed).cancel()
        await self._janus.end(self.feeds.pop(feed))
        return web.Response(status=200)

    async def _stop(self, app: web.Application) -> None:
        for task in self._keeping.values():
            task.cancel()


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[Janus]:
    async with aiohttp.ClientSession(url) as http:
        yield Janus(http)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--janus", default="http://127.0.0.1:8088", help="its HTTP transport")
    parser.add_argument("--room", type=int, default=7)
    parser.add_argument("--port", type=int, default=8090)
    options = parser.parse_args()
    async with connected(options.janus) as janus:
        room = {"request": "create", "room": options.room, "videocodec": "h264", "audiocodec": "opus", "publishers": 64}
        with contextlib.suppress(web.HTTPBadGateway):  # the room may exist
            await janus.ask(await janus.handle(), room)
        runner = web.AppRunner(Whip(janus, options.room).app())
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", options.port).start()
        print(f"publish to whip://127.0.0.1:{options.port}/whip; it appears in room {options.room}")
        await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
