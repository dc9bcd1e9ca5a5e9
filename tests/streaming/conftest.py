"""Fixtures of the streaming tests: one real engine for all of them, and servers on it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import sys
import wave
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from engine.live.engine import Engine
from streaming.config import ServerConfig
from streaming.server.app import Server
from streaming.voices.espeak import espeak_voices

sys.path.insert(0, str(Path(__file__).parent))  # for the helpers beside this file

from clients import Client

MAX_SESSIONS = 3


@pytest.fixture
def max_sessions() -> int:
    return MAX_SESSIONS


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engine(avatar_path):
    """An engine in a task of its own: a task group must be entered and left by the same task, and fixtures are not."""
    engine = Engine({"speaker": avatar_path}, max_sessions=MAX_SESSIONS, max_load=math.inf)
    ready, done = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with engine:
            ready.set()
            await done.wait()

    holding = asyncio.create_task(hold())
    holding.add_done_callback(lambda _: ready.set())  # also where the engine fails to start
    await ready.wait()
    if holding.done():
        await holding
    yield engine
    done.set()
    await holding


@pytest.fixture
def raw_speech(speech_wav, tmp_path) -> tuple[Path, int]:
    """A second of the bundled speech as raw s16le, and its sample rate."""
    with wave.open(str(speech_wav)) as sound:
        path = tmp_path / "speech.raw"
        path.write_bytes(sound.readframes(sound.getframerate()))
        return path, sound.getframerate()


@pytest.fixture
def serving(engine):
    """`async with serving(idle_session_s=..., secrets=...) as client`: a server of its own on the shared engine."""

    @contextlib.asynccontextmanager
    async def serve(samples=None, secrets=None, voices=None, **config: Any) -> AsyncIterator[Client]:
        settings = ServerConfig(port=0, max_sessions=MAX_SESSIONS, **config)
        async with (
            Server(engine, settings, voices or espeak_voices(), samples, secrets) as server,
            aiohttp.ClientSession(server.url) as http,
        ):
            yield Client(server, http)
        async with asyncio.timeout(30):  # a closed server leaves no session behind
            while engine.sessions:
                await asyncio.sleep(0.01)

    return serve


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser():
    """One Chromium for all pages; as by default, it lets no page play sound before a user gesture."""
    from benchmarks import chromium

    if not chromium.PROGRAM:
        pytest.skip("no chromium on PATH")
    async with chromium.launch() as browser:
        yield browser


@pytest.fixture
def problem():
    """Check that a reply is a problem document of that status and code; returns its detail."""

    async def check(reply: aiohttp.ClientResponse, status: int, code: str) -> str:
        assert reply.status == status, await reply.text()
        assert reply.content_type == "application/problem+json"
        document = json.loads(await reply.text())
        assert document["status"] == status and document["code"] == code and document["title"]
        return str(document["detail"])

    return check
