"""The speech protocol: accepted messages, refused ones, and the text of the refusals."""

from __future__ import annotations

import base64
import json

import msgpack
import pytest

from engine.errors import CapacityError, ProtocolError
from streaming.speech.protocol import (
    MAX_ID_CHARS,
    MAX_MESSAGE_BYTES,
    MAX_TEXT_CHARS,
    Encoding,
    Failure,
    Finished,
    SessionClosing,
    SessionReady,
    SpeechAudio,
    SpeechCancel,
    SpeechEnd,
    SpeechStart,
    SpeechText,
    Started,
    Truncate,
    Unit,
    decode_server,
    encode,
    encoding_of,
    message_of,
    parse,
)

CLIENT_MESSAGES = [
    SpeechStart("a", 24_000, 2),
    SpeechAudio("a", bytes(range(256))),
    SpeechEnd("a"),
    SpeechCancel(),
    SpeechText("t", "Grüße, 世界", "de"),
    SpeechText("t", "no voice named"),
]
SERVER_MESSAGES = [
    SessionReady("s", "anna", 512, 288, 25, ("en-us", "de")),
    Started("a", 96_000),
    Finished("a", 1234, True),
    Failure("protocol", "a message", False),
    SessionClosing("drain", 1500),
    Truncate("item", 0, 1500),
    Unit(1920, True, bytes(range(256)) * 15, b"\x00\xff" * 6),
    Unit(3840, False, bytes(3840)),
]


def decode_client(data):
    return message_of(parse(data), isinstance(data, str))


@pytest.mark.parametrize("encoding", Encoding)
@pytest.mark.parametrize("message", CLIENT_MESSAGES, ids=lambda message: type(message).__name__)
def test_client_message_survives_the_wire(message, encoding):
    data = encode(message, encoding)
    assert encoding_of(data) is encoding
    assert decode_client(data) == message


@pytest.mark.parametrize("encoding", Encoding)
@pytest.mark.parametrize("message", SERVER_MESSAGES, ids=lambda message: type(message).__name__)
def test_server_message_survives_the_wire(message, encoding):
    assert decode_server(encode(message, encoding)) == message


def test_json_carries_pcm_as_base64():
    data = encode(SpeechAudio("a", b"\x01\x02"), Encoding.JSON)
    assert json.loads(data) == {"type": "speech.audio", "id": "a", "pcm": base64.b64encode(b"\x01\x02").decode()}


def test_msgpack_carries_pcm_as_bytes():
    data = encode(SpeechAudio("a", b"\x01\x02"), Encoding.MSGPACK)
    assert msgpack.unpackb(data) == {"type": "speech.audio", "id": "a", "pcm": b"\x01\x02"}


def test_channels_default_to_one():
    assert decode_client('{"type": "speech.start", "id": "a", "sample_rate": 16000}') == SpeechStart("a", 16_000, 1)


def as_json(**message):
    return json.dumps(message)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "JSON in a text message"),
        ("{", "JSON in a text message"),
        (b"", "msgpack in a binary message"),
        (b"\xc1", "msgpack in a binary message"),
        (b"\x81\xa4type", "msgpack in a binary message"),
        (b"\x80\x80", "msgpack in a binary message"),
        (msgpack.packb({1: 2}), "msgpack in a binary message"),
        ("[" * 100_000, "JSON in a text message"),
        ("[]", "a message that is a list"),
        ("7", "a message that is a int"),
        ("{}", "message type missing; expected one of speech.start"),
        (as_json(type="speech.begin"), "'speech.begin'; expected one of speech.start"),
        (as_json(type=["speech.end"]), "expected one of speech.start"),
        (as_json(type="session.ready"), "expected one of speech.start"),
        (as_json(type="speech.end"), "id is missing; expected a string"),
        (as_json(type="speech.end", id=7), "id is 7; expected a string"),
        (as_json(type="speech.end", id=""), "id of 0 characters"),
        (as_json(type="speech.end", id="x" * (MAX_ID_CHARS + 1)), "characters; expected 1 to"),
        (as_json(type="speech.end", id="a", now=True), "speech.end with now; its fields are id"),
        (as_json(type="speech.cancel", id="a"), "its fields are none"),
        (as_json(type="speech.start", id="a", sample_rate="16000"), "sample_rate is '16000'; expected an integer"),
        (as_json(type="speech.start", id="a", sample_rate=16000.0), "expected an integer"),
        (as_json(type="speech.start", id="a", sample_rate=True), "expected an integer"),
        (as_json(type="speech.start", id="a", sample_rate=-1), "expected an integer, not negative"),
        (as_json(type="speech.start", id="a", sample_rate=16000, channels=None), "channels is missing"),
        (as_json(type="speech.audio", id="a", pcm="@@"), "pcm is not base64"),
        (as_json(type="speech.audio", id="a", pcm=[1, 2]), "expected bytes"),
        (msgpack.packb({"type": "speech.audio", "id": "a", "pcm": "AAAA"}), "pcm is 'AAAA'; expected bytes"),
        (as_json(type="speech.text", id="a", text="  "), "text of 0 characters"),
        (as_json(type="speech.text", id="a", text="x" * (MAX_TEXT_CHARS + 1)), "text of 5001 characters"),
        (as_json(type="speech.text", id="a", text="x", voice=3), "voice is 3; expected a string"),
        (as_json(type="speech.text", id="a", text="\ud800"), "speech.text: text holds half a surrogate pair"),
        (as_json(type="speech.audio", id="a", pcm="\ud800"), "speech.audio: pcm holds half a surrogate pair"),
        ('{"type": "speech.cancel", "\\ud800": 1}', "half a surrogate pair"),
        (as_json(type="speech.end", id="a", **{"b": 1, "c": 2}), "speech.end with b, c; its fields are id"),
        (" " * (MAX_MESSAGE_BYTES + 1), "send smaller pieces"),
        (bytes(MAX_MESSAGE_BYTES + 1), "send smaller pieces"),
    ],
)
def test_malformed_message_is_refused_with_what_was_found_and_expected(data, message):
    with pytest.raises(ProtocolError) as refusal:
        decode_client(data)
    assert message in str(refusal.value)
    assert len(str(refusal.value)) < 400
    str(refusal.value).encode()  # it is sent back to the client


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (as_json(type="playback.started", id="a", pts=-1), "pts is -1; expected an integer, not negative"),
        (as_json(type="playback.finished", id="a", position_samples=0, interrupted=1), "expected true or false"),
        (as_json(type="session.ready", **dict.fromkeys(("session", "avatar"), "a")), "width is missing"),
        (msgpack.packb({"type": "unit", "pts": 0, "speaking": True, "samples": b"", "picture": 7}), "expected bytes"),
    ],
)
def test_malformed_server_message_is_refused_with_what_was_found_and_expected(data, message):
    with pytest.raises(ProtocolError, match=message):
        decode_server(data)


def test_a_list_with_anything_but_strings_is_refused():
    ready = json.loads(encode(SessionReady("s", "anna", 512, 288, 25, ()), Encoding.JSON))
    with pytest.raises(ProtocolError, match=r"voices is \['de', 7\]; expected a list of strings"):
        decode_server(json.dumps({**ready, "voices": ["de", 7]}))


def test_a_server_message_is_no_client_message():
    with pytest.raises(ProtocolError):
        decode_client(encode(Started("a", 0), Encoding.MSGPACK))


def test_only_a_full_machine_is_worth_trying_again():
    assert Failure.of(CapacityError("full")).retryable
    assert Failure.of(ProtocolError("no")) == Failure("protocol", "no", False)
