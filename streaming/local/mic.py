"""The command `personastream mic`: whoever speaks into this machine's microphone speaks as the avatar."""

from __future__ import annotations

import asyncio
import secrets
import signal
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from engine.live.engine import Engine
from engine.live.session import Session
from engine.media import PlaybackFinished
from streaming.config import ServerConfig
from streaming.local.sound_devices import Microphone, RawSource, SoundSource, play
from streaming.server.app import Server

UTTERANCE = "microphone"


@dataclass(frozen=True, kw_only=True)
class Mic:
    """Speak as an avatar: this machine's microphone in, the avatar on a page in your browser."""

    avatar: tyro.conf.Positional[Path]
    device: str | None = None
    """The microphone: its number or a part of its name, as `personastream doctor` lists them."""
    source: str | None = None
    """Raw s16le sound from a file, a named pipe or - (the standard input), in the place of a microphone."""
    rate_hz: int = 16_000
    channels: int = 1
    loudspeaker: str | None = None
    """Play the sound here too, a number or a part of a name: for headphones, a microphone would hear it again."""
    port: int = 8080

    def run(self) -> int:
        asyncio.run(self._run())
        return 0

    async def _run(self) -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        source: SoundSource = (
            Microphone(self.device, self.rate_hz, self.channels)
            if self.source is None
            else RawSource(self.source, self.rate_hz, self.channels)
        )
        async with (
            Engine({self.avatar.stem: self.avatar}) as engine,
            Server(engine, ServerConfig(port=self.port), {}) as server,
        ):
            live_session = await server.live_sessions.open_standing(self.avatar.stem, secrets.token_hex(8), None)
            address = f"{server.url}/?session={live_session.session.id}&token={live_session.token}"
            Console(soft_wrap=True).print(f"Speak; the avatar is at [link]{address}[/link]", highlight=False)
            async with asyncio.TaskGroup() as tasks:
                works = [tasks.create_task(speak_from(source, live_session.session)), tasks.create_task(stop.wait())]
                if self.loudspeaker is not None:
                    tasks.create_task(play(live_session.session.subscribe(), self.loudspeaker))
                await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
                for work in works:
                    work.cancel()
                await live_session.session.close()


async def speak_from(source: SoundSource, session: Session) -> None:
    """Say what the source hears until it ends and all of it was played. SoundDeviceError."""
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
