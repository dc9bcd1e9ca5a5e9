"""Contract tests of the agent frameworks' own classes. They run in those frameworks' environments (`tools/agents`),
against the server at PERSONASTREAM_URL; tests/streaming/agents/test_agents.py starts both."""

from __future__ import annotations

import array
import os

import pytest

from streaming.agents.client import open_avatar


@pytest.fixture
async def avatar():
    """A session on the server under test."""
    url = os.environ.get("PERSONASTREAM_URL")
    if not url:
        pytest.skip("no server: PERSONASTREAM_URL is not set, run tests/streaming/agents/test_agents.py")
    async with open_avatar(url, "speaker") as client:
        yield client


@pytest.fixture
def buzz():
    """`buzz(seconds)`: sound at 24 kHz, s16le mono."""

    def make(seconds: float) -> bytes:
        return array.array("h", (6_000 if i // 40 % 2 else -6_000 for i in range(int(seconds * 24_000)))).tobytes()

    return make
