"""OpenAI Realtime events on the speech websocket, as the model's server sends them. Pure, no I/O.

A program with a Realtime connection forwards every event of the model to this socket, and every
`conversation.item.truncate` of this socket to the model. An audio item of the model is one utterance with the item's
id. Events without sound that end no sound are ignored. Both generations of names are read: those of the beta
(`response.audio.delta`) and the present ones (`response.output_audio.delta`).
Source: the Realtime API reference, "Server events".
"""

from __future__ import annotations

import base64
import binascii
from collections import deque
from collections.abc import Callable
from typing import Any

from engine.errors import ProtocolError, SpeechFormatError
from streaming.speech.protocol import MAX_ID_CHARS, SpeechAudio, SpeechCancel, SpeechEnd, SpeechStart, Truncate

SAMPLE_RATE_HZ = 24_000  # audio/pcm of the Realtime API: s16le mono at 24 kHz, the only linear format it has
SPEECH_TYPES = {
    "response.audio.delta": "delta",
    "response.output_audio.delta": "delta",
    "response.audio.done": "end",
    "response.output_audio.done": "end",
    "response.cancel": "cancel",
    "output_audio_buffer.clear": "cancel",
    "output_audio_buffer.cleared": "cancel",
    "input_audio_buffer.speech_started": "user",  # the model's server cancels its response, unless it is told not to
    "response.done": "response",
    "response.output_item.done": "item",
    "session.created": "format",
    "session.updated": "format",
}
FAMILIES = (
    *("response.", "conversation.", "input_audio_buffer.", "output_audio_buffer.", "rate_limits.", "mcp_list_tools."),
    *("session.created", "session.updated", "error"),
)
REMEMBERED_ITEMS = 256

RealtimeMessage = SpeechStart | SpeechAudio | SpeechEnd | SpeechCancel


def is_realtime(kind: str) -> bool:
    """Whether a message of this type is a Realtime event."""
    return kind.startswith(FAMILIES)


class RealtimeReader:
    """Turns the events of one connection, in their order, into messages of the speech protocol."""

    def __init__(self) -> None:
        self._open: dict[str, Any] = {}  # utterances, and the ids of their responses
        self._interruptible = True  # by the user's speech
        self._begun: deque[str] = deque(maxlen=REMEMBERED_ITEMS)

    def read(self, event: dict[str, Any]) -> list[RealtimeMessage]:
        """The messages for `event`; most events give none. Raises ProtocolError, SpeechFormatError."""
        kind = str(event["type"])
        match SPEECH_TYPES.get(kind):
            case "delta":
                return self._delta(kind, event)
            case "end":
                utterance = _utterance(kind, event)
                return self._end(lambda name, _: name == utterance)
            case "cancel":
                return self._cancelled()
            case "user" if self._interruptible:
                return self._cancelled()
            case "item":
                item = event.get("item")
                done = item.get("id") if isinstance(item, dict) else None
                return self._end(lambda name, _: name.partition("#")[0] == done)
            case "response":
                response = event.get("response")
                response = response if isinstance(response, dict) else {}
                if response.get("status") == "cancelled":
                    return self._cancelled()
                return self._end(lambda _, of: response.get("id") in (None, of))
            case "format":
                session = event.get("session")
                self._interruptible = _interruptible(session, self._interruptible)
                _check_format(session)
        return []

    def owns(self, utterance: str) -> bool:
        """Whether the utterance is an item of the model."""
        return utterance in self._begun

    def _delta(self, kind: str, event: dict[str, Any]) -> list[RealtimeMessage]:
        utterance = _utterance(kind, event)
        delta = event.get("delta")
        try:
            pcm = base64.b64decode(delta if isinstance(delta, str) else b"?", validate=True)
        except (binascii.Error, ValueError):
            raise ProtocolError(f"{kind}: delta is not base64; forward the event as the model sent it") from None
        if utterance in self._open:
            return [SpeechAudio(utterance, pcm)]
        if utterance in self._begun:  # late sound of an item that was cancelled or completed
            return []
        self._begun.append(utterance)
        self._open[utterance] = event.get("response_id")
        return [SpeechStart(utterance, SAMPLE_RATE_HZ), SpeechAudio(utterance, pcm)]

    def _end(self, ends: Callable[[str, Any], bool]) -> list[RealtimeMessage]:
        """End the open utterances for which `ends(name, response)` holds."""
        ended = [name for name, response in self._open.items() if ends(name, response)]
        for name in ended:
            del self._open[name]
        return [SpeechEnd(name) for name in ended]

    def _cancelled(self) -> list[RealtimeMessage]:
        self._open.clear()
        return [SpeechCancel()]


def truncation(utterance: str, position_samples: int) -> Truncate:
    """The event for the model: the part of an interrupted item that was played, in samples at SAMPLE_RATE_HZ."""
    item, _, index = utterance.partition("#")
    return Truncate(item, int(index or 0), position_samples * 1000 // SAMPLE_RATE_HZ)


def _utterance(kind: str, event: dict[str, Any]) -> str:
    """The item's id, followed by # and the index of its content part unless that is 0."""
    item, index = event.get("item_id"), event.get("content_index", 0)
    if not isinstance(item, str) or not 1 <= len(item) <= MAX_ID_CHARS - 8 or not item.isascii() or "#" in item:
        raise ProtocolError(f"{kind}: item_id is {item!r:.60}; expected the id of the model's item")
    if type(index) is not int or not 0 <= index < 1000:
        raise ProtocolError(f"{kind}: content_index is {index!r:.40}; expected a small integer")
    return f"{item}#{index}" if index else item


def _interruptible(session: Any, before: bool) -> bool:
    """Whether the user's speech interrupts the model (`turn_detection.interrupt_response`), in either generation."""
    audio = session.get("audio") if isinstance(session, dict) else None
    given = audio.get("input") if isinstance(audio, dict) else session
    detection = given.get("turn_detection") if isinstance(given, dict) else None
    interrupts = detection.get("interrupt_response") if isinstance(detection, dict) else None
    return interrupts if isinstance(interrupts, bool) else before


def _check_format(session: Any) -> None:
    """SpeechFormatError unless the session's sound is audio/pcm at 24 kHz, in either generation of the API."""
    if not isinstance(session, dict):
        return
    audio = session.get("audio")
    output = audio.get("output") if isinstance(audio, dict) else None
    spec = output.get("format") if isinstance(output, dict) else session.get("output_audio_format")
    name, rate = (spec.get("type"), spec.get("rate")) if isinstance(spec, dict) else (spec, None)
    if name not in (None, "pcm16", "audio/pcm") or rate not in (None, SAMPLE_RATE_HZ):
        raise SpeechFormatError(
            f"the model speaks {name!r:.40} at {rate!r:.20} Hz; set its output to audio/pcm, 24 kHz"
        )
