"""The TTS bridge: one websocket through which a client makes a session speak and hears what was played.

Messages are read ahead of what the session takes, so that a cancel is obeyed at once, not behind the speech before it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Mapping, Sequence

from aiohttp import WSMsgType, web

from engine.errors import CapacityError, PersonaStreamError, ProtocolError, SessionClosedError
from engine.media import FPS, PlaybackEvent, PlaybackStarted
from engine.queues import MediaQueue, Policy, QueueClosed
from streaming.server.live_session import LiveSession
from streaming.server.session_events import Closing, SessionEvent
from streaming.speech.protocol import (
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
    encode,
    encoding_of,
    message_of,
    parse,
)
from streaming.speech.realtime import RealtimeReader, is_realtime, truncation
from streaming.voices.voice import Voice, find_voice

LATE_UTTERANCES = 256  # interrupted ones of which something may still be on its way
MAX_AHEAD_BYTES = 8 << 20  # read and not yet taken by the session: three minutes of 24 kHz mono
MESSAGE_BYTES = 256  # of one without its sound or text, as Python holds it
WAITING_TEXTS = 8  # more are refused: not reading the socket for minutes would also leave a cancel unread


class SpeechSocket:
    """Reads messages while there is room for them: a full session, then a full inbox, is the socket's back-pressure."""

    def __init__(self, socket: web.WebSocketResponse, live_session: LiveSession, voices: Mapping[str, Voice]):
        self._socket = socket
        self._live_session = live_session
        self._avatar = live_session.avatar
        self._session = live_session.session
        self._voices = voices
        self._encoding = Encoding.JSON  # of the replies: what the client used last
        self._open: dict[str, int] = {}  # utterances begun here and not ended, and the epoch that they began in
        self._late: deque[str] = deque(maxlen=LATE_UTTERANCES)
        self._texts: MediaQueue[tuple[SpeechText, Voice, int]] = MediaQueue(WAITING_TEXTS, Policy.WAIT)
        self._waiting: deque[int] = deque()  # the epochs of those texts
        self._inbox: MediaQueue[tuple[ClientMessage, int]] = MediaQueue(
            MAX_AHEAD_BYTES, Policy.WAIT, lambda item: size_of(item[0])
        )
        self._realtime = RealtimeReader()
        self._voice: tuple[asyncio.Task[None], int] | None = None  # speaks a text of that epoch

    async def run(self, request: web.Request) -> None:
        """Serve until the client or the session leaves; utterances that are still open end there.

        SessionClosedError before the websocket is there if the session has ended, so that it can be told over HTTP.
        """
        events, changes = self._session.subscribe_events(), self._live_session.listen()
        avatar = self._session.avatar
        ready = SessionReady(self._session.id, self._avatar, avatar.width, avatar.height, FPS, tuple(self._voices))
        try:
            await self._socket.prepare(request)
            await self._send(ready)
            async with asyncio.TaskGroup() as tasks:
                works = (self._report(events), self._announce(changes), self._speak_texts())
                others = [tasks.create_task(work) for work in works]
                obeying = tasks.create_task(self._obey_all())
                await self._listen()
                await obeying
                for task in others:
                    task.cancel()
        finally:
            self._session.unsubscribe_events(events)
            self._live_session.forget(changes)
            for utterance in [name for name, epoch in self._open.items() if epoch == self._session.epoch]:
                with contextlib.suppress(PersonaStreamError):  # the session may have ended it, or itself
                    self._session.end_utterance(utterance)

    async def _listen(self) -> None:
        """Read until the client leaves; what a message means is told by when it came, not by when it is obeyed."""
        async for message in self._socket:
            if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                break
            self._encoding = encoding_of(message.data)
            try:
                for found in self._read(message.data):
                    if isinstance(found, SpeechCancel):
                        self._session.cancel()
                        self._stop_voice()
                    else:
                        await self._inbox.put((found, self._session.epoch))
            except QueueClosed:  # nobody obeys any more: the session has ended
                break
            except PersonaStreamError as error:
                await self._send(Failure.of(error))
        await self._inbox.close()

    def _read(self, data: bytes | str) -> Sequence[ClientMessage]:
        found = parse(data)
        kind = found.get("type")
        if isinstance(kind, str) and is_realtime(kind):
            return self._realtime.read(found)
        return [message_of(found, isinstance(data, str))]

    async def _obey_all(self) -> None:
        """Obey what was read, in its order, until the inbox is closed and empty, or the session has ended."""
        async for message, epoch in self._inbox:
            try:
                if epoch == self._session.epoch:
                    await self._obey(message)
                elif isinstance(message, SpeechStart | SpeechText):  # cancelled before it began
                    self._late.append(message.id)
                    await self._send(Finished(message.id, 0, True))
            except SessionClosedError:
                await self._inbox.close()
                await self._say_why()
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
            if self._session.epoch == epoch:  # else interrupted before its turn came
                async with asyncio.TaskGroup() as tasks:
                    self._voice = tasks.create_task(self._speak(message, voice, epoch)), epoch
                self._voice = None

    def _stop_voice(self) -> None:
        """End the work on a text that was interrupted, wherever it waits; a remote voice is hung up on."""
        if self._voice is not None and self._voice[1] != self._session.epoch:
            self._voice[0].cancel()

    async def _speak(self, message: SpeechText, voice: Voice, epoch: int) -> None:
        try:
            async with contextlib.aclosing(voice.speak(message.text)) as pieces:
                async for pcm in pieces:
                    await self._session.push_audio(message.id, pcm)
        except SessionClosedError:
            return
        except PersonaStreamError as error:
            await self._send(Failure.of(error))
        finally:
            if self._session.epoch == epoch:  # else the id may be another utterance's by now
                with contextlib.suppress(SessionClosedError):
                    self._end(message.id)

    async def _report(self, events: MediaQueue[PlaybackEvent]) -> None:
        async for event in events:
            if isinstance(event, PlaybackStarted):
                await self._send(Started(event.utterance, event.pts))
                continue
            if event.interrupted:
                self._interrupted(event.utterance)
                self._stop_voice()
            await self._send(Finished(event.utterance, event.position_samples, event.interrupted))
            if event.interrupted and self._realtime.owns(event.utterance):
                await self._send(truncation(event.utterance, event.position_samples))
        await self._say_why()

    async def _say_why(self) -> None:
        ending = self._live_session.ending
        await self._socket.close(code=ending.code, message=f"{ending.reason}: {ending.detail}".encode())

    async def _announce(self, changes: MediaQueue[SessionEvent]) -> None:
        async for change in changes:
            if isinstance(change, Closing):
                await self._send(SessionClosing(change.reason, round(change.within_s * 1000)))

    async def _send(self, message: ServerMessage) -> None:
        data = encode(message, self._encoding)
        with contextlib.suppress(ConnectionError):  # the client has gone, which ends `_listen`
            await (self._socket.send_str(data) if isinstance(data, str) else self._socket.send_bytes(data))


def size_of(message: ClientMessage) -> int:
    """The bytes that a message takes while it waits."""
    match message:
        case SpeechAudio(_, pcm):
            return MESSAGE_BYTES + len(pcm)
        case SpeechText(_, text, _):
            return MESSAGE_BYTES + len(text)
    return MESSAGE_BYTES
