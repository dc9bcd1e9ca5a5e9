"""The speech protocol under random input: a message, or a ProtocolError that a person can read; never anything else."""

from __future__ import annotations

import json

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ProtocolError, SpeechFormatError
from streaming.speech.protocol import (
    CLIENT_TYPES,
    SERVER_TYPES,
    Encoding,
    SpeechAudio,
    SpeechCancel,
    SpeechEnd,
    SpeechStart,
    SpeechText,
    decode_server,
    encode,
    message_of,
    parse,
)
from streaming.speech.realtime import SPEECH_TYPES, RealtimeReader

QUICK = settings(max_examples=200, deadline=None, derandomize=True)

surrogates = st.text(st.characters(categories=["Cs", "Ll"]), max_size=3)
scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | surrogates | st.binary()
)
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
types = st.sampled_from([*CLIENT_TYPES, *SERVER_TYPES]) | values
names = (
    st.sampled_from(["id", "sample_rate", "channels", "pcm", "text", "voice", "pts", "fps"]) | st.text() | surrogates
)
maps = st.dictionaries(names, values, max_size=6).flatmap(
    lambda fields: types.map(lambda kind: {"type": kind, **fields})
)
ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=128)
messages = st.one_of(
    st.builds(SpeechStart, ids, st.integers(0, 2**63), st.integers(0, 2**63)),
    st.builds(SpeechAudio, ids, st.binary()),
    st.builds(SpeechEnd, ids),
    st.just(SpeechCancel()),
    st.builds(SpeechText, ids, st.just("text") | ids.filter(str.strip), st.none() | ids),
)


def decode_client(data):
    return message_of(parse(data), isinstance(data, str))


def decode(data) -> None:
    for decoder in (decode_client, decode_server):
        try:
            decoder(data)
        except ProtocolError as refusal:
            assert 0 < len(str(refusal)) < 1_000
            str(refusal).encode()  # it goes back to the client: half a surrogate pair would break the answer


@QUICK
@given(st.binary() | st.text())
def test_any_bytes_and_any_text(data):
    decode(data)


@pytest.mark.slow
@QUICK
@given(maps)
def test_any_map_in_both_encodings(found):
    decode(msgpack.packb(found, default=str, unicode_errors="surrogatepass"))
    decode(json.dumps(found, default=repr))


@QUICK
@given(messages, st.sampled_from(Encoding))
def test_every_message_survives_the_wire(message, encoding):
    assert decode_client(encode(message, encoding)) == message


@QUICK
@given(messages, st.sampled_from(Encoding), st.data())
def test_a_message_with_some_bytes_changed(message, encoding, data):
    encoded = encode(message, encoding)
    wire = bytearray(encoded if isinstance(encoded, bytes) else encoded.encode())
    for place in data.draw(st.lists(st.integers(0, len(wire) - 1), max_size=4)):
        wire[place] = data.draw(st.integers(0, 255))
    wire = bytes(wire[: data.draw(st.integers(0, len(wire)))])
    decode(wire if encoding is Encoding.MSGPACK else wire.decode("utf-8", "surrogateescape"))


@QUICK
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["item_id", "content_index", "delta", "session", "response"]), values | st.just("AAAA")
        ).flatmap(lambda fields: st.sampled_from(sorted(SPEECH_TYPES)).map(lambda kind: {**fields, "type": kind})),
        max_size=5,
    )
)
def test_any_realtime_events_are_messages_that_the_session_takes_or_refused(events):
    reader = RealtimeReader()
    for event in events:
        try:
            messages = reader.read(event)
        except (ProtocolError, SpeechFormatError) as refusal:
            assert len(str(refusal)) < 1_000
        else:
            for message in messages:
                assert decode_client(encode(message, Encoding.MSGPACK)) == message
