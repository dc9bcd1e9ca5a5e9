"""The TTS bridge: one websocket through which a client makes a session speak and hears what was played."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

from aiohttp import WSMsgType, web

from engine.errors import CapacityError, PersonaStreamError, ProtocolError, SessionClosedError
from engine.media import FPS, PlaybackEvent, PlaybackStarted
from engine.queues import MediaQueue, Policy
from streaming.lease import Lease
from streaming.metrics import Metrics
from streaming.protocol import (
    ClientMessage,
    Encoding,
    Failure,
    Finished,
    ServerMessage,
    SessionReady,
    SpeechAudio,
    SpeechCancel,
    SpeechEnd,
    SpeechStart,
    SpeechText,
    Started,
    decode_client,
    encode,
    encoding_of,
)
from streaming.voices import Voice, find_voice

WAITING_TEXTS = 8  # more are refused: not reading the socket for minutes would also leave a cancel unread


class SpeechSocket:
    """Reads messages while the session takes them: the session's full buffer is the socket's back-pressure."""

    def __init__(self, socket: web.WebSocketResponse, lease: Lease, voices: Mapping[str, Voice], metrics: Metrics):
        self._socket = socket
        self._avatar = lease.avatar
        self._session = lease.session
        self._voices = voices
        self._metrics = metrics
        self._encoding = Encoding.JSON  # of the replies: what the client used last
        self._open: set[str] = set()  # utterances begun here and not ended
        self._texts: MediaQueue[tuple[SpeechText, Voice, int]] = MediaQueue(WAITING_TEXTS, Policy.WAIT)
        self._started_s: dict[str, float] = {}  # when the utterances that are not heard yet began
        self._cancelled_s: float | None = None

    async def run(self) -> None:
        """Serve until the client or the session leaves; utterances that are still open end there."""
        events = self._session.subscribe_events()
        avatar = self._session.avatar
        ready = SessionReady(self._session.id, self._avatar, avatar.width, avatar.height, FPS, tuple(self._voices))
        try:
            await self._send(ready)
            async with asyncio.TaskGroup() as tasks:
                others = [tasks.create_task(self._report(events)), tasks.create_task(self._speak_texts())]
                await self._listen()
                for task in others:
                    task.cancel()
        finally:
            self._session.unsubscribe_events(events)
            for utterance in self._open:
                with contextlib.suppress(PersonaStreamError):  # the session may have ended it, or itself
                    self._session.end_utterance(utterance)

    async def _listen(self) -> None:
        async for message in self._socket:
            if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                return
            self._encoding = encoding_of(message.data)
            try:
                await self._obey(decode_client(message.data))
            except SessionClosedError:
                return
            except PersonaStreamError as error:
                await self._send(Failure.of(error))

    async def _obey(self, message: ClientMessage) -> None:
        match message:
            case SpeechStart(utterance, sample_rate, channels):
                self._start(utterance, sample_rate, channels)
            case SpeechAudio(utterance, pcm):
                self._expect_open(utterance)
                await self._session.push_audio(utterance, pcm)
            case SpeechEnd(utterance):
                self._expect_open(utterance)
                self._end(utterance)
            case SpeechCancel():
                self._cancelled_s = asyncio.get_running_loop().time()
                self._session.cancel()
            case SpeechText(utterance, _, name):
                voice = find_voice(self._voices, name)
                if len(self._texts) == WAITING_TEXTS:
                    raise CapacityError(f"{WAITING_TEXTS} texts wait to be spoken; send this one later")
                # Begun here, not when its turn to be spoken comes: utterances keep the order of their messages.
                self._start(utterance, voice.sample_rate_hz, 1)
                await self._texts.put((message, voice, self._session.epoch))

    def _start(self, utterance: str, sample_rate_hz: int, channels: int) -> None:
        self._session.start_utterance(utterance, sample_rate_hz, channels)
        self._open.add(utterance)
        self._started_s[utterance] = asyncio.get_running_loop().time()

    def _end(self, utterance: str) -> None:
        self._open.discard(utterance)
        self._session.end_utterance(utterance)

    def _expect_open(self, utterance: str) -> None:
        if utterance not in self._open:
            raise ProtocolError(f"utterance {utterance!r} is not open on this connection; send speech.start first")

    async def _speak_texts(self) -> None:
        async for message, voice, epoch in self._texts:
            try:
                await self._speak(message, voice, epoch)
            except SessionClosedError:
                return
            except PersonaStreamError as error:
                await self._send(Failure.of(error))

    async def _speak(self, message: SpeechText, voice: Voice, epoch: int) -> None:
        try:
            async with contextlib.aclosing(voice.speak(message.text)) as pieces:
                async for pcm in pieces:
                    if self._session.epoch != epoch:  # interrupted: the rest need not be made
                        return
                    await self._session.push_audio(message.id, pcm)
        finally:
            self._end(message.id)

    async def _report(self, events: MediaQueue[PlaybackEvent]) -> None:
        async for event in events:
            now_s = asyncio.get_running_loop().time()
            started_s = self._started_s.pop(event.utterance, None)
            if isinstance(event, PlaybackStarted):
                if started_s is not None:
                    self._metrics.first_sound.observe(now_s - started_s)
                await self._send(Started(event.utterance, event.pts))
                continue
            if event.interrupted and self._cancelled_s is not None:
                self._metrics.interruption.observe(now_s - self._cancelled_s)
                self._cancelled_s = None
            await self._send(Finished(event.utterance, event.position_samples, event.interrupted))
        await self._socket.close(message=b"the session is closed")

    async def _send(self, message: ServerMessage) -> None:
        data = encode(message, self._encoding)
        with contextlib.suppress(ConnectionError):  # the client has gone, which ends `_listen`
            await (self._socket.send_str(data) if isinstance(data, str) else self._socket.send_bytes(data))
