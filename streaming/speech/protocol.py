"""The speech protocol: what a client and a session say to each other over a websocket. Pure, no I/O.

A message is a map with a `type`. It travels as msgpack in a binary websocket message, or as JSON in a text message,
where bytes are base64. Anything that is not exactly one of the messages below is a ProtocolError.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, TypeVar

import msgpack  # type: ignore[import-untyped]

from engine.errors import PersonaStreamError, ProtocolError

MAX_MESSAGE_BYTES = 1 << 20  # ten seconds of 48 kHz mono, or seven as base64
MAX_SERVER_MESSAGE_BYTES = 64 << 20  # a unit with a picture of 4096 x 4096
MAX_ID_CHARS = 128
MAX_TEXT_CHARS = 5_000  # about six minutes of speech


class Encoding(Enum):
    MSGPACK = "msgpack"  # binary websocket messages
    JSON = "json"  # text websocket messages


@dataclass(frozen=True)
class SpeechStart:
    """An utterance begins: s16le sound at `sample_rate`, 1 or 2 channels."""

    id: str
    sample_rate: int
    channels: int = 1


@dataclass(frozen=True)
class SpeechAudio:
    id: str
    pcm: bytes  # s16le, interleaved, whole samples


@dataclass(frozen=True)
class SpeechEnd:
    id: str


@dataclass(frozen=True)
class SpeechCancel:
    """Barge-in: forget all speech of the session, spoken or waiting."""


@dataclass(frozen=True)
class SpeechText:
    """An utterance that the server's own voice speaks."""

    id: str
    text: str
    voice: str | None = None


@dataclass(frozen=True)
class SessionReady:
    """The first message of a connection: what it is connected to."""

    session: str
    avatar: str
    width: int
    height: int
    fps: int
    voices: tuple[str, ...]


@dataclass(frozen=True)
class Started:
    """The first sample of utterance `id` was played at media time `pts` (48 kHz samples)."""

    id: str
    pts: int


@dataclass(frozen=True)
class Finished:
    """`position_samples` of utterance `id` were played, counted at its own sample rate."""

    id: str
    position_samples: int
    interrupted: bool


@dataclass(frozen=True)
class Truncate:
    """For a Realtime model whose item was interrupted: the event to forward to it (see `realtime`)."""

    item_id: str
    content_index: int
    audio_end_ms: int


@dataclass(frozen=True)
class SessionClosing:
    """The session takes no new utterance; it ends when what was begun is said, and within `within_ms`."""

    reason: str
    within_ms: int


@dataclass(frozen=True)
class Unit:
    """One frame with its sound, on the units websocket. A picture that repeats its predecessor is left out."""

    pts: int
    speaking: bool  # the sound is speech of an utterance
    samples: bytes  # 1920 samples s16le mono, 48 kHz
    picture: bytes | None = None  # RGB, row by row, of the size that session.ready told


@dataclass(frozen=True)
class Failure:
    """A message was refused, or speech could not be made; the connection goes on."""

    code: str
    message: str
    retryable: bool

    @classmethod
    def of(cls, error: PersonaStreamError) -> Failure:
        return cls(error.code, str(error), error.retryable)


ClientMessage = SpeechStart | SpeechAudio | SpeechEnd | SpeechCancel | SpeechText
ServerMessage = SessionReady | Started | Finished | SessionClosing | Truncate | Unit | Failure
AnyMessage = TypeVar("AnyMessage", ClientMessage, ServerMessage)

CLIENT_TYPES: dict[str, type[ClientMessage]] = {
    "speech.start": SpeechStart,
    "speech.audio": SpeechAudio,
    "speech.end": SpeechEnd,
    "speech.cancel": SpeechCancel,
    "speech.text": SpeechText,
}
SERVER_TYPES: dict[str, type[ServerMessage]] = {
    "session.ready": SessionReady,
    "session.closing": SessionClosing,
    "playback.started": Started,
    "playback.finished": Finished,
    "conversation.item.truncate": Truncate,
    "unit": Unit,
    "error": Failure,
}
TYPE_NAMES: dict[type[Any], str] = {kind: name for name, kind in [*CLIENT_TYPES.items(), *SERVER_TYPES.items()]}


def decode_client(data: bytes | str) -> ClientMessage:
    """One websocket message from a client; ProtocolError says what was found and what was expected."""
    return message_of(parse(data), isinstance(data, str))


def message_of(found: dict[str, Any], text: bool) -> ClientMessage:
    """The message in a parsed map; `text`: it came as JSON, where bytes are base64. ProtocolError as above."""
    return _checked_message(found, text, CLIENT_TYPES)


def decode_server(data: bytes | str) -> ServerMessage:
    """One websocket message from the server: for clients written in Python."""
    return _checked_message(parse(data, MAX_SERVER_MESSAGE_BYTES), isinstance(data, str), SERVER_TYPES)


def encode(message: ClientMessage | ServerMessage, encoding: Encoding) -> bytes | str:
    """The websocket message: bytes for msgpack, str for JSON."""
    found: dict[str, Any] = {"type": TYPE_NAMES[type(message)]}
    for field in fields(message):
        value = getattr(message, field.name)
        if value is not None:
            found[field.name] = value
    if encoding is Encoding.MSGPACK:
        return bytes(msgpack.packb(found))
    return json.dumps(found, default=lambda pcm: base64.b64encode(pcm).decode(), ensure_ascii=False)


def encoding_of(data: bytes | str) -> Encoding:
    return Encoding.JSON if isinstance(data, str) else Encoding.MSGPACK


def _checked_message(found: dict[str, Any], text: bool, types: dict[str, type[AnyMessage]]) -> AnyMessage:
    name = found.get("type")
    if not isinstance(name, str) or name not in types:
        raise ProtocolError(f"message type {_shown(name)}; expected one of {_listed(types)}")
    kind = types[name]
    names: list[str] = [field.name for field in fields(kind)]
    unknown = sorted(key for key in found if key not in ("type", *names))
    if unknown:
        shown = _listed(key[:40] for key in unknown[:4])
        raise ProtocolError(f"{name} with {shown}; its fields are {_listed(names) or 'none'}")
    values = {}
    for field in fields(kind):
        value = found.get(field.name, field.default)
        values[field.name] = _checked(name, field.name, str(field.type), value, text)
    return kind(**values)


def parse(data: bytes | str, limit: int = MAX_MESSAGE_BYTES) -> dict[str, Any]:
    """The map that a websocket message holds, whatever it says; ProtocolError."""
    size = len(data)
    if size > limit:
        raise ProtocolError(f"a message of {size} bytes; expected at most {limit}: send smaller pieces")
    try:
        found = json.loads(data) if isinstance(data, str) else msgpack.unpackb(data)
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        name = "JSON in a text message" if isinstance(data, str) else "msgpack in a binary message"
        raise ProtocolError(
            f"{size} bytes that do not parse ({error or type(error).__name__}); expected {name}"
        ) from None
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ProtocolError(f"a message that is a {type(found).__name__}; expected a map with names as keys")
    return found


def _checked(message: str, name: str, kind: str, value: Any, text: bool) -> Any:
    """`value` if it is what field `name` of `message` takes; base64 becomes bytes in text messages."""
    if kind.startswith("bytes") and text and isinstance(value, str):
        try:
            value = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raise ProtocolError(f"{message}: {name} is not base64; text messages carry bytes as base64") from None
    expected, right = {
        "str": ("a string", isinstance(value, str)),
        "str | None": ("a string", value is None or isinstance(value, str)),
        "int": ("an integer, not negative", type(value) is int and value >= 0),
        "bool": ("true or false", isinstance(value, bool)),
        "bytes": ("bytes", isinstance(value, bytes)),
        "bytes | None": ("bytes", value is None or isinstance(value, bytes)),
        "tuple[str, ...]": ("a list of strings", _is_strings(value)),
    }[kind]
    if not right:
        raise ProtocolError(f"{message}: {name} is {_shown(value)}; expected {expected}")
    if isinstance(value, str) and not _is_unicode(value):
        raise ProtocolError(f"{message}: {name} holds half a surrogate pair; expected Unicode text")
    if name == "id" and not 1 <= len(value) <= MAX_ID_CHARS:
        raise ProtocolError(f"{message}: id of {len(value)} characters; expected 1 to {MAX_ID_CHARS}")
    if name == "text" and not 1 <= len(value.strip()) <= MAX_TEXT_CHARS:
        raise ProtocolError(f"{message}: text of {len(value.strip())} characters; expected 1 to {MAX_TEXT_CHARS}")
    return tuple(value) if kind == "tuple[str, ...]" else value


def _is_strings(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell lone surrogates, which no other program can read
        return False
    return True


def _shown(value: Any) -> str:
    if value is None or repr(value).startswith("<dataclasses._MISSING_TYPE"):
        return "missing"
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:40]}… ({type(value).__name__})"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
