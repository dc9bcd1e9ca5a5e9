"""The messages of the speech and units websockets. Pure, no I/O.

A message is a map with a `type`. It travels as msgpack in a binary websocket message, or as JSON in a text message,
where bytes are base64. Anything but one of the messages below is a ProtocolError.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Annotated, Any, get_args, get_type_hints

import msgpack  # type: ignore[import-untyped]
from msgspec import Meta, Struct, ValidationError, convert, to_builtins
from msgspec.structs import replace

from engine.errors import PersonaStreamError, ProtocolError
from streaming.errors import SpeechRefusedError

MAX_MESSAGE_BYTES = 1 << 20  # ten seconds of 48 kHz mono, or seven as base64
MAX_SERVER_MESSAGE_BYTES = 64 << 20  # a unit with a picture of 4096 x 4096
MAX_ID_CHARS = 128
MAX_TEXT_CHARS = 5_000  # about six minutes of speech

Id = Annotated[str, Meta(min_length=1, max_length=MAX_ID_CHARS)]
Count = Annotated[int, Meta(ge=0)]


class Encoding(Enum):
    MSGPACK = "msgpack"  # binary websocket messages
    JSON = "json"  # text websocket messages


class SpeechStart(Struct, frozen=True, tag="speech.start"):
    """Begins an utterance of s16le sound at `sample_rate` Hz, with 1 or 2 channels."""

    id: Id
    sample_rate: Count
    channels: Count = 1


class SpeechAudio(Struct, frozen=True, tag="speech.audio"):
    id: Id
    pcm: bytes  # s16le, interleaved; a sample may continue in the next piece


class SpeechEnd(Struct, frozen=True, tag="speech.end"):
    id: Id


class SpeechCancel(Struct, frozen=True, tag="speech.cancel"):
    """Barge-in: drops all speech of the session, spoken or waiting."""


class SpeechText(Struct, frozen=True, tag="speech.text"):
    """An utterance that a voice of the server speaks: 1 to MAX_TEXT_CHARS characters, outer blanks not counted."""

    id: Id
    text: str
    voice: str | None = None


class SessionReady(Struct, frozen=True, tag="session.ready"):
    """The first message of a connection: its session."""

    session: str
    avatar: str
    width: Count
    height: Count
    fps: Count
    voices: tuple[str, ...]


class SessionClosing(Struct, frozen=True, tag="session.closing"):
    """The session accepts no new utterance. It ends when the open ones are played, at the latest in `within_ms`."""

    reason: str
    within_ms: Count


class Started(Struct, frozen=True, tag="playback.started"):
    """The first sample of utterance `id` was played at media time `pts` (48 kHz samples)."""

    id: Id
    pts: Count


class Finished(Struct, frozen=True, tag="playback.finished"):
    """`position_samples` of utterance `id` were played, counted at its own sample rate."""

    id: Id
    position_samples: Count
    interrupted: bool


class Truncate(Struct, frozen=True, tag="conversation.item.truncate"):
    """The event to forward to a Realtime model whose item was interrupted (see `realtime`)."""

    item_id: str
    content_index: Count
    audio_end_ms: Count


class Unit(Struct, frozen=True, tag="unit"):
    """One frame with its sound, on the units websocket. A picture that repeats its predecessor is left out."""

    pts: Count
    speaking: bool  # the sound is speech of an utterance
    samples: bytes  # 1920 samples s16le mono, 48 kHz
    picture: bytes | None = None  # RGB, row by row, of the size in session.ready


class Failure(Struct, frozen=True, tag="error"):
    """A message was refused, or its speech failed. The connection continues.

    Where speech was refused because too much waits: its utterance, and how much of it was taken before.
    """

    code: str
    message: str
    retryable: bool
    id: Id | None = None
    taken_samples: Count | None = None

    @classmethod
    def of(cls, error: PersonaStreamError) -> Failure:
        failure = cls(error.code, str(error), error.retryable)
        if isinstance(error, SpeechRefusedError):
            return replace(failure, id=error.utterance, taken_samples=error.taken_samples)
        return failure


ClientMessage = SpeechStart | SpeechAudio | SpeechEnd | SpeechCancel | SpeechText
ServerMessage = SessionReady | SessionClosing | Started | Finished | Truncate | Unit | Failure

CLIENT_TYPES: dict[str, type[ClientMessage]] = {kind.__struct_config__.tag: kind for kind in get_args(ClientMessage)}
SERVER_TYPES: dict[str, type[ServerMessage]] = {kind.__struct_config__.tag: kind for kind in get_args(ServerMessage)}
EXPECTED: dict[Any, str] = {
    str: "a string",
    str | None: "a string",
    int: "an integer, not negative",
    int | None: "an integer, not negative",
    bool: "true or false",
    bytes: "bytes",
    bytes | None: "bytes",
    tuple[str, ...]: "a list of strings",
}


def message_of(fields: dict[str, Any], text: bool) -> ClientMessage:
    """The client's message in a parsed map; `text`: it came as JSON, where bytes are base64.

    Raises ProtocolError, with the value found and the value expected.
    """
    return _checked_message(fields, text, CLIENT_TYPES)


def decode_server(data: bytes | str) -> ServerMessage:
    """One websocket message from the server, for clients in Python. Raises ProtocolError as `message_of`."""
    return _checked_message(parse(data, MAX_SERVER_MESSAGE_BYTES), isinstance(data, str), SERVER_TYPES)


def encode(message: ClientMessage | ServerMessage, encoding: Encoding) -> bytes | str:
    """The websocket message: bytes for msgpack, str for JSON. Fields that are None are left out."""
    binary = encoding is Encoding.MSGPACK
    values = to_builtins(message, builtin_types=(bytes,) if binary else ())  # bytes become base64 if not listed
    fields = {name: value for name, value in values.items() if value is not None}
    return bytes(msgpack.packb(fields)) if binary else json.dumps(fields, ensure_ascii=False)


def encoding_of(data: bytes | str) -> Encoding:
    return Encoding.JSON if isinstance(data, str) else Encoding.MSGPACK


def parse(data: bytes | str, limit: int = MAX_MESSAGE_BYTES) -> dict[str, Any]:
    """The map in a websocket message, with any fields. Raises ProtocolError for other data and above `limit` bytes."""
    size = len(data)
    if size > limit:
        raise ProtocolError(f"a message of {size} bytes; expected at most {limit}: send smaller pieces")
    try:
        fields = json.loads(data) if isinstance(data, str) else msgpack.unpackb(data)
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        name = "JSON in a text message" if isinstance(data, str) else "msgpack in a binary message"
        raise ProtocolError(
            f"{size} bytes that do not parse ({error or type(error).__name__}); expected {name}"
        ) from None
    if not isinstance(fields, dict) or not all(isinstance(key, str) for key in fields):
        raise ProtocolError(f"a message that is a {type(fields).__name__}; expected a map with names as keys")
    return fields


def _checked_message(fields: dict[str, Any], text: bool, types: Mapping[str, type[Struct]]) -> Any:
    name = fields.get("type")
    if not isinstance(name, str) or name not in types:
        raise ProtocolError(f"message type {_shown(name)}; expected one of {_listed(types)}")
    kind = types[name]
    for key, value in fields.items():  # JSON can hold lone surrogates, which UTF-8 cannot
        if not _is_unicode(key) or (isinstance(value, str) and not _is_unicode(value)):
            raise ProtocolError(f"{name}: {ascii(key[:40])[1:-1]} holds half a surrogate pair; expected Unicode text")
    unknown = sorted(fields.keys() - {"type", *kind.__struct_fields__})
    if unknown:
        shown = _listed(key[:40] for key in unknown[:4])
        raise ProtocolError(f"{name} with {shown}; its fields are {_listed(kind.__struct_fields__) or 'none'}")
    try:
        message = convert(fields, kind, builtin_types=() if text else (bytes,))
    except ValidationError as error:
        raise ProtocolError(f"{name}: {_explained(kind, fields, str(error))}") from None
    if isinstance(message, SpeechText) and not 1 <= len(message.text.strip()) <= MAX_TEXT_CHARS:
        chars = len(message.text.strip())
        raise ProtocolError(f"{name}: text of {chars} characters; expected 1 to {MAX_TEXT_CHARS}")
    return message


def _explained(kind: type[Struct], fields: dict[str, Any], problem: str) -> str:
    """msgspec's error, which ends with the name of the field, in the terms of this protocol."""
    name = re.findall(r"`(?:\$\.)?(\w+)", problem)[-1]
    if "base64" in problem:
        return f"{name} is not base64; text messages carry bytes as base64"
    if "length" in problem:
        return f"{name} of {len(fields[name])} characters; expected 1 to {MAX_ID_CHARS}"
    return f"{name} is {_shown(fields.get(name))}; expected {EXPECTED[get_type_hints(kind)[name]]}"


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: Any) -> str:
    if value is None:
        return "missing"
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:40]}… ({type(value).__name__})"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
