"""A LiveKit avatar worker: livekit-agents' VideoGenerator on a session of a personastream server.

    python -m streaming.agents.livekit --server http://127.0.0.1:8080 --avatar speaker --livekit-url wss://… --token …

livekit-agents needs protobuf 5 or later, the engine's face tracker needs an older one. The worker therefore runs in a
separate environment and connects to the server: see docs/agents.md.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

import tyro
from livekit import rtc
from livekit.agents.voice.avatar import (
    AudioSegmentEnd,
    AvatarOptions,
    AvatarRunner,
    DataStreamAudioReceiver,
    VideoGenerator,
)

from streaming.agents.client import AvatarClient, open_avatar
from streaming.speech.protocol import Failure, Finished, Unit

log = logging.getLogger(__name__)

FPS = 25
SAMPLE_RATE_HZ = 48_000
SAMPLES_PER_FRAME = 1920


class AvatarVideo(VideoGenerator):  # type: ignore[misc]  # not installed where types are checked
    """The generator for livekit-agents' AvatarRunner: speech in, pictures and sound out, with the end of each segment.

    While the avatar idles it sends pictures and no sound, because the runner counts all sound as played speech. The
    runner's playback position is therefore exact to one frame, 40 ms.
    """

    def __init__(self, client: AvatarClient):
        self._client = client

    @property
    def options(self) -> AvatarOptions:
        """The size of the pictures, 25 fps, 48 kHz mono."""
        ready = self._client.ready
        return AvatarOptions(
            video_width=ready.width,
            video_height=ready.height,
            video_fps=FPS,
            audio_sample_rate=SAMPLE_RATE_HZ,
            audio_channels=1,
        )

    async def push_audio(self, frame: rtc.AudioFrame | AudioSegmentEnd) -> None:
        """Send speech of the present segment, or its end, to the avatar."""
        if isinstance(frame, AudioSegmentEnd):
            await self._client.finish()
        else:
            await self._client.speak(bytes(frame.data), frame.sample_rate, frame.num_channels)

    async def clear_buffer(self) -> None:
        """Barge-in: drop all speech that was pushed."""
        await self._client.interrupt()

    async def __aiter__(self) -> AsyncIterator[rtc.VideoFrame | rtc.AudioFrame | AudioSegmentEnd]:
        ready = self._client.ready
        picture = b""
        async for message in self._client:
            if isinstance(message, Unit):
                picture = message.picture or picture
                if picture:
                    yield rtc.VideoFrame(ready.width, ready.height, rtc.VideoBufferType.RGB24, picture)
                if message.speaking:
                    yield rtc.AudioFrame(message.samples, SAMPLE_RATE_HZ, 1, SAMPLES_PER_FRAME)
            elif isinstance(message, Finished) and not message.interrupted:
                yield AudioSegmentEnd()
            elif isinstance(message, Failure):
                log.error("the avatar refused speech: %s (%s)", message.message, message.code)


@dataclass(frozen=True, kw_only=True)
class Worker:
    """Join a LiveKit room as the avatar of an agent whose audio output is DataStreamAudioOutput."""

    avatar: str
    livekit_url: str
    token: str
    """Token of the avatar's participant; the agent makes it with the attribute lk.publish_on_behalf."""
    server: str = "http://127.0.0.1:8080"

    async def run(self) -> None:
        """Serve until the room is left."""
        key = os.environ.get("PERSONASTREAM_API_KEY", "").partition(",")[0].strip() or None
        async with open_avatar(self.server, self.avatar, key) as client:
            room, left = rtc.Room(), asyncio.Event()
            room.on("disconnected", lambda *_: left.set())
            video = AvatarVideo(client)
            runner = AvatarRunner(
                room, audio_recv=DataStreamAudioReceiver(room), video_gen=video, options=video.options
            )
            await room.connect(self.livekit_url, self.token)
            try:
                await runner.start()
                await left.wait()
            finally:
                await runner.aclose()
                await room.disconnect()


if __name__ == "__main__":
    asyncio.run(tyro.cli(Worker).run())
