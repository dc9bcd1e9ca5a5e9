"""The command `personastream mic`: speech from this machine's microphone drives an avatar on a web page."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field
from pathlib import Path

import tyro
from rich.console import Console

from engine.backends.select import backend_for
from engine.config import ComputeConfig, SessionConfig
from engine.live.engine import Engine
from engine.live.session import Session
from engine.media import PlaybackFinished
from streaming.commands.stop_signals import StopSignals
from streaming.config import ServerConfig
from streaming.local.sound_devices import Microphone, RawSource, SoundSource, play
from streaming.race import race
from streaming.server.app import Server


@dataclass(frozen=True, kw_only=True)
class Mic:
    """Speak as an avatar: speech from this machine's microphone, the avatar on a page in your browser."""

    avatar: tyro.conf.Positional[Path]
    """The .avatar file."""
    device: str | None = None
    """The microphone: its number or a part of its name, as `personastream doctor` lists them."""
    source: str | None = None
    """Raw s16le sound from a file, a named pipe or - (the standard input), instead of a microphone."""
    rate_hz: int = 16_000
    """Sample rate of the microphone or the raw sound."""
    channels: int = 1
    """Channels of the microphone or the raw sound: 1 or 2."""
    loudspeaker: str | None = None
    """Play the sound on this device too, a number or a part of its name. Use headphones: a microphone would hear it."""
    expressiveness: float = SessionConfig.expressiveness
    """How far the lips move, 0 to 2: 1 as the speaker's do. Closed lips stay closed."""
    port: int = 8080
    """Port of the page, on localhost alone."""
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    def run(self) -> int:
        """Speak until the source ends or a signal stops it; returns the exit code."""
        asyncio.run(self.speak())
        return 0

    async def speak(self) -> None:
        """Speak until the source ends and all of it is played, or until SIGINT or SIGTERM. Raises SoundDeviceError, and
        the errors of `backend_for`."""
        source: SoundSource = (
            Microphone(self.device, self.rate_hz, self.channels)
            if self.source is None
            else RawSource(self.source, self.rate_hz, self.channels)
        )
        session, compute = SessionConfig(expressiveness=self.expressiveness), self.compute
        with StopSignals() as stops:
            backend = backend_for(compute.device, compute.quality, compute.gpu_mode)
            async with (
                Engine({self.avatar.stem: self.avatar}, session, backend=backend) as engine,
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
    """Speak the sound of `source` until it ends and all of it is played. Raises SoundDeviceError.

    Each barge-in, from the page or another client, ends the present utterance; the sound after it is a new one.
    """
    units = session.subscribe(events_only=True)
    utterance = None
    try:
        async for pcm in source.blocks():
            if utterance != (current := f"microphone {session.epoch}"):
                session.start_utterance(current, source.sample_rate_hz, source.channels)
                utterance = current
            await session.push_audio(utterance, pcm)
        if utterance is None:
            return
        session.end_utterance(utterance)
        async for unit in units:
            if any(isinstance(event, PlaybackFinished) and event.utterance == utterance for event in unit.events):
                return
    finally:
        session.unsubscribe(units)
