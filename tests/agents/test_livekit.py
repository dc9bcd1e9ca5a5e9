"""The avatar under livekit-agents' own AvatarRunner, with its real audio and video sources."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("livekit.agents", reason="livekit-agents lives in an environment of its own, see docs/agents.md")

from livekit import rtc
from livekit.agents.voice.avatar import AudioReceiver, AudioSegmentEnd, AvatarRunner, VideoGenerator

from streaming.agents.livekit import AvatarVideo


class Agent(AudioReceiver):
    """The agent's end: gives frames to the runner and keeps its notifications."""

    def __init__(self):
        super().__init__()
        self.frames: asyncio.Queue[rtc.AudioFrame | AudioSegmentEnd] = asyncio.Queue()
        self.notifications: asyncio.Queue[tuple] = asyncio.Queue()

    def notify_playback_finished(self, playback_position, interrupted):
        self.notifications.put_nowait(("finished", playback_position, interrupted))

    def notify_playback_started(self):
        self.notifications.put_nowait(("started",))

    async def __aiter__(self):
        while True:
            yield await self.frames.get()

    def say(self, pcm: bytes) -> None:
        """One segment, in frames of 20 ms as an agent sends it."""
        for start in range(0, len(pcm), 960):
            piece = pcm[start : start + 960]
            self.frames.put_nowait(rtc.AudioFrame(piece, 24_000, 1, len(piece) // 2))
        self.frames.put_nowait(AudioSegmentEnd())

    async def next_notification(self) -> tuple:
        async with asyncio.timeout(60):
            return await self.notifications.get()


@pytest.fixture
async def running(avatar):
    """An agent, and a runner at work whose tracks count as published: no room is joined."""
    agent, video = Agent(), AvatarVideo(avatar)
    assert isinstance(video, VideoGenerator)
    runner = AvatarRunner(rtc.Room(), audio_recv=agent, video_gen=video, options=video.options)
    runner._video_publication = object()
    await runner.start()
    yield agent
    await runner.aclose()


async def test_segments_are_played_one_after_the_other_and_each_is_notified_once(running, buzz):
    for seconds in (1.0, 0.6):
        running.say(buzz(seconds))
        assert await running.next_notification() == ("started",)
        kind, position, interrupted = await running.next_notification()
        assert (kind, interrupted) == ("finished", False)
        assert seconds <= position <= seconds + 0.08
    await asyncio.sleep(0.5)
    assert running.notifications.empty()


async def test_an_interruption_ends_the_segment_in_time_and_the_next_one_is_whole(running, buzz):
    running.say(buzz(20))
    assert await running.next_notification() == ("started",)
    await asyncio.sleep(0.5)
    running.emit("clear_buffer")
    kind, position, interrupted = await running.next_notification()
    assert (kind, interrupted) == ("finished", True) and 0 < position < 20
    running.say(buzz(0.5))
    assert await running.next_notification() == ("started",)
    kind, position, interrupted = await running.next_notification()
    assert (kind, interrupted) == ("finished", False) and 0.5 <= position <= 0.58


async def test_an_idle_avatar_sends_pictures_and_no_sound(avatar):
    video = AvatarVideo(avatar)
    frames = []
    async with asyncio.timeout(60):
        async for frame in video:
            frames.append(frame)
            if len(frames) == 10:
                break
    assert all(isinstance(frame, rtc.VideoFrame) for frame in frames)
    assert (frames[0].width, frames[0].height) == (video.options.video_width, video.options.video_height)
