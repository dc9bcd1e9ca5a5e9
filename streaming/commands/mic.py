"""The command `personastream mic`: speech from this machine's microphone drives an avatar on a web page."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from engine.live.engine import Engine
from engine.live.session import Session
from engine.media import PlaybackFinished
from streaming.commands.stop_signals import StopSignals
from streaming.config import ServerConfig
from streaming.local.sound_devices import Microphone, RawSource, SoundSource, play
from streaming.race import race
from streaming.server.app import Server

UTTERANCE = "microphone"


@dataclass(frozen=True, kw_only=True)
class Mic:
    """Speak as an avatar: speech from this machine's microphone, the avatar on a page in your browser."""

    avatar: tyro.conf.Positional[Path]
    device: str | None = None
    """The microphone: its number or a part of its name, as `personastream doctor` lists them."""
    source: str | None = None
    """Raw s16le sound from a file, a named pipe or - (the standard input), instead of a microphone."""
    rate_hz: int = 16_000
    channels: int = 1
    loudspeaker: str | None = None
    """Play the sound on this device too, a number or a part of its name. Use headphones: a microphone would hear it."""
    port: int = 8080

    def run(self) -> int:
        """Speak until the source ends or a signal stops it; returns the exit code."""
        asyncio.run(self.speak())
        return 0

    async def speak(self) -> None:
        """Speak until the source ends and all of it is played, or until SIGINT or SIGTERM. Raises SoundDeviceError."""
        source: SoundSource = (
            Microphone(self.device, self.rate_hz, self.channels)
            if self.source is None
            else RawSource(self.source, self.rate_hz, self.channels)
        )
        with StopSignals() as stops:
            async with (
                Engine({self.avatar.stem: self.avatar}) as engine,
                Server(engine, ServerConfig(port=self.port), {}) as server,
            ):
                await self._speak_from(source, server, stops.first)

    async def _speak_from(self, source: SoundSource, server: Server, stop: asyncio.Event) -> None:
        live_session = await server.live_sessions.open_standing(self.avatar.stem, secrets.token_hex(8), None)
        address = f"{server.url}/?session={live_session.session.id}&token={live_session.token}"
        Console(soft_wrap=True).print(f"Speak; the avatar is at [link]{address}[/link]", highlight=False)
        async with asyncio.TaskGroup() as tasks:
            if self.loudspeaker is not None:
                tasks.create_task(play(live_session.session.subscribe(), self.loudspeaker))
            await race(speak_from(source, live_session.session), stop.wait())
            await live_session.session.close()


async def speak_from(source: SoundSource, session: Session) -> None:
    """Speak the sound of `source` until it ends and all of it is played. Raises SoundDeviceError."""
    units = session.subscribe(events_only=True)
    try:
        session.start_utterance(UTTERANCE, source.sample_rate_hz, source.channels)
        async for pcm in source.blocks():
            await session.push_audio(UTTERANCE, pcm)
        session.end_utterance(UTTERANCE)
        async for unit in units:
            if any(isinstance(event, PlaybackFinished) for event in unit.events):
                return
    finally:
        session.unsubscribe(units)
