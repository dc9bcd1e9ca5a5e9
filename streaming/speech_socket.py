"""The TTS bridge: one websocket through which a client makes a session speak and hears what was played."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Mapping

from aiohttp import WSMsgType, web

from engine.errors import CapacityError, PersonaStreamError, ProtocolError, SessionClosedError
from engine.media import FPS, PlaybackEvent, PlaybackStarted
from engine.queues import MediaQueue, Policy
from streaming.lease import Closing, Lease, LeaseEvent
from streaming.protocol import (
    ClientMessage,
    Encoding,
    Failure,
    Finished,
    ServerMessage,
    SessionClosing,
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
from streaming.voices.voice import Voice, find_voice

LATE_UTTERANCES = 256  # interrupted ones of which something may still be on its way
WAITING_TEXTS = 8  # more are refused: not reading the socket for minutes would also leave a cancel unread


class SpeechSocket:
    """Reads messages while the session takes them: the session's full buffer is the socket's back-pressure."""

    def __init__(self, socket: web.WebSocketResponse, lease: Lease, voices: Mapping[str, Voice]):
        self._socket = socket
        self._lease = lease
        self._avatar = lease.avatar
        self._session = lease.session
        self._voices = voices
        self._encoding = Encoding.JSON  # of the replies: what the client used last
        self._open: dict[str, int] = {}  # utterances begun here and not ended, and the epoch that they began in
        self._late: deque[str] = deque(maxlen=LATE_UTTERANCES)
        self._texts: MediaQueue[tuple[SpeechText, Voice, int]] = MediaQueue(WAITING_TEXTS, Policy.WAIT)
        self._waiting: deque[int] = deque()  # the epochs of those texts

    async def run(self, request: web.Request) -> None:
        """Serve until the client or the session leaves; utterances that are still open end there.

        SessionClosedError before the websocket is there if the session has ended, so that it can be told over HTTP.
        """
        events, changes = self._session.subscribe_events(), self._lease.listen()
        avatar = self._session.avatar
        ready = SessionReady(self._session.id, self._avatar, avatar.width, avatar.height, FPS, tuple(self._voices))
        try:
            await self._socket.prepare(request)
            await self._send(ready)
            async with asyncio.TaskGroup() as tasks:
                works = (self._report(events), self._announce(changes), self._speak_texts())
                others = [tasks.create_task(work) for work in works]
                await self._listen()
                for task in others:
                    task.cancel()
        finally:
            self._session.unsubscribe_events(events)
            self._lease.forget(changes)
            for utterance in [name for name, epoch in self._open.items() if epoch == self._session.epoch]:
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
                if self._is_open(utterance):
                    await self._session.push_audio(utterance, pcm)
            case SpeechEnd(utterance):
                if self._is_open(utterance):
                    self._end(utterance)
            case SpeechCancel():
                self._session.cancel()
            case SpeechText(utterance, _, name):
                voice = find_voice(self._voices, name)
                if self._waiting.count(self._session.epoch) >= WAITING_TEXTS:
                    raise CapacityError(f"{WAITING_TEXTS} texts wait to be spoken; send this one later")
                # Begun here, not when its turn to be spoken comes: utterances keep the order of their messages.
                self._start(utterance, voice.sample_rate_hz, 1)
                self._waiting.append(self._session.epoch)
                await self._texts.put((message, voice, self._waiting[-1]))

    def _start(self, utterance: str, sample_rate_hz: int, channels: int) -> None:
        self._session.start_utterance(utterance, sample_rate_hz, channels)
        self._open[utterance] = self._session.epoch

    def _end(self, utterance: str) -> None:
        self._open.pop(utterance, None)
        self._session.end_utterance(utterance)

    def _is_open(self, utterance: str) -> bool:
        """False for one that was interrupted: what was on its way is ignored. ProtocolError if it never began here."""
        if utterance in self._open:
            return self._open[utterance] == self._session.epoch
        if utterance in self._late:
            return False
        raise ProtocolError(f"utterance {utterance!r} is not open on this connection; send speech.start first")

    def _interrupted(self, utterance: str) -> None:
        """Forget it, unless the same id began again since."""
        if self._open.get(utterance, self._session.epoch) != self._session.epoch:
            del self._open[utterance]
            self._late.append(utterance)

    async def _speak_texts(self) -> None:
        async for message, voice, epoch in self._texts:
            self._waiting.popleft()
            try:
                await self._speak(message, voice, epoch)
            except SessionClosedError:
                return
            except PersonaStreamError as error:
                await self._send(Failure.of(error))

    async def _speak(self, message: SpeechText, voice: Voice, epoch: int) -> None:
        if self._session.epoch != epoch:  # interrupted before its turn came
            return
        try:
            async with contextlib.aclosing(voice.speak(message.text)) as pieces:
                async for pcm in pieces:
                    if self._session.epoch != epoch:  # interrupted: the rest need not be made
                        return
                    await self._session.push_audio(message.id, pcm)
        finally:
            if self._session.epoch == epoch:  # else the id may be another utterance's by now
                self._end(message.id)

    async def _report(self, events: MediaQueue[PlaybackEvent]) -> None:
        async for event in events:
            if isinstance(event, PlaybackStarted):
                await self._send(Started(event.utterance, event.pts))
                continue
            if event.interrupted:
                self._interrupted(event.utterance)
            await self._send(Finished(event.utterance, event.position_samples, event.interrupted))
        ending = self._lease.ending
        await self._socket.close(code=ending.code, message=f"{ending.reason}: {ending.detail}".encode())

    async def _announce(self, changes: MediaQueue[LeaseEvent]) -> None:
        async for change in changes:
            if isinstance(change, Closing):
                await self._send(SessionClosing(change.reason, round(change.within_s * 1000)))

    async def _send(self, message: ServerMessage) -> None:
        data = encode(message, self._encoding)
        with contextlib.suppress(ConnectionError):  # the client has gone, which ends `_listen`
            await (self._socket.send_str(data) if isinstance(data, str) else self._socket.send_bytes(data))
