"""The speech websocket: a client makes a session speak, and receives its playback events.

Messages are read as they come, and wait in an Inbox for their turn. A cancel is obeyed when it is read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aiohttp import WSMsgType, web

from engine.errors import CapacityError, PersonaStreamError, ProtocolError, SessionClosedError
from engine.media import FPS, MediaUnit, PlaybackEvent, PlaybackStarted
from engine.queues import MediaQueue, Policy, QueueClosed
from streaming.errors import SpeechRefusedError
from streaming.server.live_session import LiveSession
from streaming.server.session_events import Closing, SessionEvent
from streaming.speech.inbox import Inbox
from streaming.speech.keep_alive import keep_alive
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
from streaming.voices.ssml import plain
from streaming.voices.voice import Voice, find_voice

LATE_UTTERANCES = 256  # interrupted utterances whose messages may still arrive
WAITING_TEXTS = 8  # more are refused


@dataclass
class _Begun:
    """An utterance that a client began: in which epoch, bytes of a sample of all channels, bytes pushed."""

    epoch: int
    sample_bytes: int
    pushed_bytes: int = 0


class SpeechSocket:
    """`ping_s`: the client is pinged this often."""

    def __init__(
        self, socket: web.WebSocketResponse, live_session: LiveSession, voices: Mapping[str, Voice], ping_s: float
    ):
        self._socket, self._ping_s = socket, ping_s
        self._live_session = live_session
        self._avatar = live_session.avatar
        self._session = live_session.session
        self._voices = voices
        self._encoding = Encoding.JSON  # of the replies: the encoding of the client's last message
        self._open: dict[str, _Begun] = {}  # utterances begun here and not ended
        self._late: deque[str] = deque(maxlen=LATE_UTTERANCES)
        self._texts: MediaQueue[tuple[SpeechText, Voice, int]] = MediaQueue(WAITING_TEXTS, Policy.WAIT)
        self._waiting: deque[int] = deque()  # the epochs of those texts
        self._inbox = Inbox(live_session)
        self._realtime = RealtimeReader()
        self._voice: tuple[asyncio.Task[None], int] | None = None  # speaks a text of that epoch

    async def run(self, request: web.Request) -> None:
        """Serve until the client leaves or the session ends; then utterances that are still open end.

        Raises SessionClosedError before the websocket opens if the session has ended, so that HTTP can answer it.
        """
        units, changes = self._session.subscribe(1, events_only=True), self._live_session.listen()
        avatar = self._session.avatar
        ready = SessionReady(self._session.id, self._avatar, avatar.width, avatar.height, FPS, tuple(self._voices))
        try:
            await self._socket.prepare(request)
            await self._send(ready)
            async with asyncio.TaskGroup() as tasks:
                keeping = keep_alive(self._socket, self._ping_s)
                works = (self._report(units), self._announce(changes), self._speak_texts(), keeping)
                others = [tasks.create_task(work) for work in works]
                obeying = tasks.create_task(self._obey_all())
                await self._listen()
                await obeying  # of a connection that was cut, too: speech that was taken is played
                for task in others:
                    task.cancel()
        finally:
            self._session.unsubscribe(units)
            self._live_session.forget(changes)
            await self._inbox.discard()
            for utterance in [name for name, begun in self._open.items() if begun.epoch == self._session.epoch]:
                with contextlib.suppress(PersonaStreamError):  # the session may have ended it, or itself
                    self._session.end_utterance(utterance)

    async def _listen(self) -> None:
        """Read until the client leaves. A message counts for the epoch of its arrival, however late it is obeyed."""
        async for message in self._socket:
            if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                break
            self._encoding = encoding_of(message.data)
            try:
                for command in self._read(message.data):
                    if isinstance(command, SpeechCancel):
                        self._session.cancel()
                        self._stop_voice()
                    else:
                        await self._inbox.put(command, self._session.epoch)
            except QueueClosed:  # the session has ended
                break
            except PersonaStreamError as error:
                await self._send(Failure.of(error))
        await self._inbox.close()

    def _read(self, data: bytes | str) -> Sequence[ClientMessage]:
        fields = parse(data)
        kind = fields.get("type")
        if isinstance(kind, str) and is_realtime(kind):
            return self._realtime.read(fields)
        return [message_of(fields, isinstance(data, str))]

    async def _obey_all(self) -> None:
        """Obey the messages in their order until the inbox is closed and empty, or the session has ended."""
        async for message, epoch in self._inbox:
            try:
                if epoch == self._session.epoch:
                    await self._obey(message)
                elif isinstance(message, SpeechStart | SpeechText):  # cancelled before it began
                    self._late.append(message.id)
                    await self._send(Finished(message.id, 0, True))
            except SessionClosedError:
                await self._inbox.discard()
                await self._close()
                return
            except PersonaStreamError as error:
                await self._send(Failure.of(error))

    async def _obey(self, message: ClientMessage) -> None:
        match message:
            case SpeechStart(utterance, sample_rate, channels):
                self._start(utterance, sample_rate, channels)
            case SpeechAudio(utterance, pcm):
                if self._is_open(utterance):
                    await self._push(utterance, pcm)
            case SpeechEnd(utterance):
                if self._is_open(utterance):
                    self._end(utterance)
            case SpeechText(utterance, text, name):
                if not plain(text).strip():
                    raise ProtocolError("the text has no words beside its tags; expected some to speak")
                voice = find_voice(self._voices, name)
                if self._waiting.count(self._session.epoch) >= WAITING_TEXTS:
                    raise CapacityError(f"{WAITING_TEXTS} texts wait to be spoken; send this one later")
                # Begun here, not when its turn to be spoken comes: utterances keep the order of their messages.
                self._start(utterance, voice.sample_rate_hz, 1)
                self._waiting.append(self._session.epoch)
                await self._texts.put((message, voice, self._waiting[-1]))

    def _start(self, utterance: str, sample_rate_hz: int, channels: int) -> None:
        self._session.start_utterance(utterance, sample_rate_hz, channels)
        self._open[utterance] = _Begun(self._session.epoch, 2 * channels)

    async def _push(self, utterance: str, pcm: bytes) -> None:
        begun = self._open[utterance]
        try:
            await self._session.push_audio(utterance, pcm)
        except CapacityError as error:
            raise SpeechRefusedError(str(error), utterance, begun.pushed_bytes // begun.sample_bytes) from error
        begun.pushed_bytes += len(pcm)

    def _end(self, utterance: str) -> None:
        self._open.pop(utterance, None)
        self._session.end_utterance(utterance)

    def _is_open(self, utterance: str) -> bool:
        """False for an interrupted utterance, whose late messages are ignored. ProtocolError if it never began here."""
        if utterance in self._open:
            return self._open[utterance].epoch == self._session.epoch
        if utterance in self._late:
            return False
        raise ProtocolError(f"utterance {utterance!r} is not open on this connection; send speech.start first")

    def _interrupted(self, utterance: str) -> None:
        """Forget the utterance, unless its id has begun again since."""
        if utterance in self._open and self._open[utterance].epoch != self._session.epoch:
            del self._open[utterance]
            self._late.append(utterance)

    async def _speak_texts(self) -> None:
        async for message, voice, epoch in self._texts:
            self._waiting.popleft()
            if self._session.epoch == epoch:  # else it was interrupted before its turn
                async with asyncio.TaskGroup() as tasks:
                    self._voice = tasks.create_task(self._speak(message, voice, epoch)), epoch
                self._voice = None

    def _stop_voice(self) -> None:
        """Cancel the voice of a text that was interrupted; the connection to a remote voice is closed."""
        if self._voice is not None and self._voice[1] != self._session.epoch:
            speaking, self._voice = self._voice[0], None  # cancelled once: a second time would cut its closing short
            speaking.cancel()

    async def _speak(self, message: SpeechText, voice: Voice, epoch: int) -> None:
        try:
            async with contextlib.aclosing(voice.speak(plain(message.text))) as pieces:
                async for pcm in pieces:
                    await self._session.push_audio(message.id, pcm)
        except SessionClosedError:
            return
        except PersonaStreamError as error:
            await self._send(Failure.of(error))
        finally:
            if self._session.epoch == epoch:  # else the id may be in use again
                with contextlib.suppress(PersonaStreamError):
                    self._end(message.id)

    async def _report(self, units: MediaQueue[MediaUnit]) -> None:
        """Send the playback events until the session ends. No variable keeps a unit between two events: this
        connection would keep its picture in memory."""
        with contextlib.suppress(QueueClosed):
            while True:
                for event in (await units.get()).events:
                    await self._report_event(event)
        await self._close()

    async def _report_event(self, event: PlaybackEvent) -> None:
        if isinstance(event, PlaybackStarted):
            await self._send(Started(event.utterance, event.pts))
            return
        if event.interrupted:
            self._interrupted(event.utterance)
            self._stop_voice()
        await self._send(Finished(event.utterance, event.position_samples, event.interrupted))
        if event.interrupted and self._realtime.owns(event.utterance):
            await self._send(truncation(event.utterance, event.position_samples))

    async def _close(self) -> None:
        ending = self._live_session.ending
        await self._socket.close(code=ending.code, message=f"{ending.reason}: {ending.detail}".encode())

    async def _announce(self, changes: MediaQueue[SessionEvent]) -> None:
        async for change in changes:
            if isinstance(change, Closing):
                await self._send(SessionClosing(change.reason, round(change.within_s * 1000)))

    async def _send(self, message: ServerMessage) -> None:
        data = encode(message, self._encoding)
        with contextlib.suppress(ConnectionError):  # the client has left, which ends `_listen`
            await (self._socket.send_str(data) if isinstance(data, str) else self._socket.send_bytes(data))
