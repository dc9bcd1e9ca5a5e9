"""A Pipecat service: speech of the TTS service goes in, pictures and the same speech come out in sync.

    async with open_avatar("http://127.0.0.1:8080", "speaker") as avatar:
        pipeline = Pipeline([…, tts, AvatarService(avatar), transport.output(), …])

pipecat-ai needs protobuf 5 or later, the engine's face tracker needs an older one. The service therefore runs in a
separate environment and connects to a personastream server: see docs/agents.md.
"""

from __future__ import annotations

import asyncio
from collections import deque

from pipecat.frames.frames import (
    CancelFrame,
    EndFrame,
    Frame,
    InterruptionFrame,
    OutputImageRawFrame,
    StartFrame,
    TTSAudioRawFrame,
    TTSStoppedFrame,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor

from engine.errors import SessionClosedError
from streaming.agents.client import AvatarClient
from streaming.speech.protocol import Failure, Finished, Unit

SAMPLE_RATE_HZ = 48_000


class AvatarService(FrameProcessor):  # type: ignore[misc]  # not installed where types are checked
    """Takes TTSAudioRawFrames, and pushes OutputImageRawFrames and TTSAudioRawFrames (48 kHz mono) in real time.

    A TTSStoppedFrame is pushed when its speech has been played, an EndFrame when all speech has. An InterruptionFrame
    drops all speech before it.
    """

    def __init__(self, client: AvatarClient):
        super().__init__()
        self._client = client
        self._stops: deque[TTSStoppedFrame] = deque()  # of utterances that are still played
        self._played = asyncio.Event()
        self._played.set()
        self._playing: asyncio.Task[None] | None = None

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """See FrameProcessor."""
        await super().process_frame(frame, direction)
        try:
            if await self._take(frame):
                return
        except SessionClosedError as error:
            await self.push_error(str(error), exception=error)
        await self.push_frame(frame, direction)
        if isinstance(frame, StartFrame):  # nothing may be pushed before it
            self._playing = self.create_task(self._play())

    async def cleanup(self) -> None:
        """See FrameProcessor."""
        await super().cleanup()
        await self._stop()

    async def _take(self, frame: Frame) -> bool:
        """Send the frame to the avatar; True for frames that are not pushed on now."""
        if isinstance(frame, TTSAudioRawFrame):
            self._played.clear()
            await self._client.speak(frame.audio, frame.sample_rate, frame.num_channels)
            return True
        elif isinstance(frame, TTSStoppedFrame):
            if self._played.is_set():  # an utterance without sound: no playback will end
                return False
            self._stops.append(frame)
            await self._client.finish()
            return True
        elif isinstance(frame, InterruptionFrame):
            self._stops.clear()
            self._played.set()
            await self._client.interrupt()
        elif isinstance(frame, EndFrame):
            await self._client.finish()
            await self._played.wait()
            await self._stop()
        elif isinstance(frame, CancelFrame):
            await self._stop()
        return False

    async def _play(self) -> None:
        """Push pictures and sound of the avatar, at the pace of the server."""
        size = (self._client.ready.width, self._client.ready.height)
        async for message in self._client:
            if isinstance(message, Unit):
                if message.picture:
                    image = OutputImageRawFrame(image=message.picture, size=size, format="RGB")
                    image.pts = message.pts * 1_000_000_000 // SAMPLE_RATE_HZ
                    image.sync_with_audio = True
                    await self.push_frame(image)
                if message.speaking:
                    await self.push_frame(TTSAudioRawFrame(message.samples, SAMPLE_RATE_HZ, 1))
            elif isinstance(message, Finished) and not message.interrupted:
                if self._stops:
                    await self.push_frame(self._stops.popleft())
                if not self._stops:
                    self._played.set()
            elif isinstance(message, Failure):
                await self.push_error(f"{message.message} ({message.code})")
        self._played.set()  # the session has ended, and with it all playback

    async def _stop(self) -> None:
        if self._playing is not None:
            task, self._playing = self._playing, None
            await self.cancel_task(task)
