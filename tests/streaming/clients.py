"""A client of one server, and its end of a speech socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp

from streaming.server.app import Server
from streaming.speech.protocol import Encoding, Failure, SpeechEnd, decode_server, encode


@dataclass
class Client:
    """A client of one server."""

    server: Server
    http: aiohttp.ClientSession

    async def open_session(self, key: str = "") -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with self.http.post("/v1/sessions", json={"avatar": "speaker"}, headers=headers) as reply:
            assert reply.status == 201, await reply.text()
            return dict(await reply.json())

    @contextlib.asynccontextmanager
    async def speech(self, session: dict[str, Any], encoding: Encoding = Encoding.MSGPACK) -> AsyncIterator[Speech]:
        async with self.http.ws_connect(session["speech"], params={"token": session["token"]}) as socket:
            yield Speech(socket, encoding)


@dataclass
class Speech:
    """The client's end of a speech socket."""

    socket: aiohttp.ClientWebSocketResponse
    encoding: Encoding

    async def send(self, message: Any) -> None:
        data = encode(message, self.encoding)
        await (self.socket.send_str(data) if isinstance(data, str) else self.socket.send_bytes(data))

    async def receive(self, timeout_s: float = 60.0) -> Any:
        message = await self.socket.receive(timeout=timeout_s)
        assert message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY), message
        return decode_server(message.data)

    async def receive_until(self, kind: type, timeout_s: float = 60.0) -> Any:
        async with asyncio.timeout(timeout_s):
            while not isinstance(message := await self.receive(timeout_s), kind):
                pass
        return message

    async def taken(self) -> None:
        """Wait until the server has read all messages: send an invalid one and wait for the refusal."""
        await self.send(SpeechEnd("never begun"))
        await self.receive_until(Failure)
