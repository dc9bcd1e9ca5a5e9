"""Sound without a file, and waiting for a session to end."""

from __future__ import annotations

import asyncio
import contextlib


def tone(seconds: float, sample_rate: int = 16_000) -> bytes:
    """A buzz: sound enough to be played, made without a file."""
    return b"".join(
        (6_000 if i // 40 % 2 else -6_000).to_bytes(2, "little", signed=True) for i in range(int(seconds * sample_rate))
    )


async def ended(engine, session, timeout_s=60.0):
    async with asyncio.timeout(timeout_s):
        while session["id"] in engine.sessions:
            await asyncio.sleep(0.05)


async def speak_whole(voice, text: str) -> bytes:
    """All of a voice's sound for a text, at once."""
    async with contextlib.aclosing(voice.speak(text)) as pieces:
        return b"".join([piece async for piece in pieces])
