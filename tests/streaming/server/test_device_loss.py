"""A device that computes nothing more: the server is not ready and says why, and the process ends with a code."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import aiohttp
from speaking import tone

from engine.live.engine import Engine
from streaming.commands.serve import DEVICE_LOST, Serve
from streaming.config import ServerConfig
from streaming.server.app import Server
from streaming.speech.protocol import Encoding, SpeechAudio, SpeechEnd, SpeechStart, encode

sys.path.insert(0, str(Path(__file__).parents[2] / "engine"))
from stand_ins import QuickBackend

LOSS = "cuda:0 computes nothing more (CUDA error: unspecified launch failure)"


def lost_backend():
    """A backend on which the first speech fails for good."""
    backend = QuickBackend()
    backend.loss = LOSS
    return backend


async def test_the_server_is_not_ready_and_says_why(avatar_path, problem):
    backend = lost_backend()
    async with (
        Engine({"speaker": avatar_path}, backend=backend) as engine,
        Server(engine, ServerConfig(port=0), {}) as server,
        aiohttp.ClientSession(server.url) as http,
    ):
        async with http.get("/readyz") as ready:
            assert ready.status == 200
        backend.failure = RuntimeError("CUDA error")
        session = engine.open_session("speaker")
        session.start_utterance("a", 16_000, 1)
        await session.push_audio("a", tone(1.0))
        await asyncio.wait_for(engine.failed.wait(), 30)
        async with http.get("/readyz") as ready:
            assert LOSS in await problem(ready, 503, "device")
        async with http.post("/v1/sessions", json={"avatar": "speaker"}) as refused:
            assert LOSS in await problem(refused, 503, "device")
        async with http.get("/healthz") as healthy:
            assert healthy.status == 200


async def test_the_process_drains_and_ends_with_a_code(avatar_path, capsys):
    backend = lost_backend()
    serving = asyncio.ensure_future(Serve(avatars=(avatar_path,), server=ServerConfig(port=0)).serve(backend))
    printed = ""
    async with asyncio.timeout(60):
        while not (url := re.search(r"http://[\d.:]+", printed)):
            await asyncio.sleep(0.05)
            printed += capsys.readouterr().out
        backend.failure = RuntimeError("CUDA error")
        async with aiohttp.ClientSession(url[0]) as http:
            async with http.post("/v1/sessions", json={"avatar": avatar_path.stem}) as reply:
                session = await reply.json()
            async with http.ws_connect(session["speech"], params={"token": session["token"]}) as socket:
                for message in (SpeechStart("a", 16_000), SpeechAudio("a", tone(1.0)), SpeechEnd("a")):
                    await socket.send_bytes(encode(message, Encoding.MSGPACK))
                while not (await socket.receive()).type.name.startswith("CLOS"):
                    pass
        assert await serving == DEVICE_LOST == 3
