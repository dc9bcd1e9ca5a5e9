"""A Realtime model's events on the speech socket, forwarded unchanged, in both generations of names."""

from __future__ import annotations

import asyncio
import base64
import json

import pytest

from engine.errors import ProtocolError, SpeechFormatError
from streaming.speech.protocol import (
    Failure,
    Finished,
    SpeechAudio,
    SpeechCancel,
    SpeechEnd,
    SpeechStart,
    Started,
    Truncate,
)
from streaming.speech.realtime import RealtimeReader, is_realtime, truncation

GENERATIONS = ("response.audio", "response.output_audio")
PCM = bytes(range(200)) * 120  # half a second at 24 kHz


def delta(name: str, item: str = "item_1", pcm: bytes = b"\1\2", **more):
    coded = base64.b64encode(pcm).decode()
    event = {"type": f"{name}.delta", "event_id": "e", "response_id": "r", "item_id": item, "output_index": 0}
    return {**event, "content_index": 0, "delta": coded, **more}


def done(name: str, item: str = "item_1"):
    return {"type": f"{name}.done", "event_id": "e", "response_id": "r", "item_id": item, "content_index": 0}


@pytest.mark.parametrize("name", GENERATIONS)
def test_an_audio_item_is_one_utterance(name):
    reader = RealtimeReader()
    messages = [m for event in (delta(name), delta(name), done(name), done(name)) for m in reader.read(event)]
    sound = SpeechAudio("item_1", b"\1\2")
    assert messages == [SpeechStart("item_1", 24_000), sound, sound, SpeechEnd("item_1")]


@pytest.mark.parametrize(
    "event",
    [
        {"type": "response.cancel"},
        {"type": "output_audio_buffer.cleared"},
        {"type": "output_audio_buffer.clear"},
        {"type": "input_audio_buffer.speech_started", "audio_start_ms": 7},
        {"type": "response.done", "response": {"status": "cancelled"}},
    ],
)
def test_events_that_interrupt_the_model_interrupt_the_avatar_and_late_sound_is_ignored(event):
    reader = RealtimeReader()
    reader.read(delta(GENERATIONS[1]))
    assert reader.read(event) == [SpeechCancel()]
    assert reader.read(delta(GENERATIONS[1])) == [] and reader.read(done(GENERATIONS[1])) == []
    assert reader.read(delta(GENERATIONS[1], "item_2"))[0] == SpeechStart("item_2", 24_000)


@pytest.mark.parametrize("status", ["completed", "incomplete", "failed"])
@pytest.mark.parametrize("named", [{"id": "r"}, {}])
def test_a_response_that_is_done_ends_its_open_items(status, named):
    reader = RealtimeReader()
    reader.read(delta(GENERATIONS[1]))
    reader.read(delta(GENERATIONS[1], content_index=1))
    done_response = {"type": "response.done", "response": {"status": status, **named}}
    assert reader.read(done_response) == [SpeechEnd("item_1"), SpeechEnd("item_1#1")]
    assert reader.read(done_response) == [] and reader.read(done(GENERATIONS[1])) == []


def test_a_response_that_is_done_ends_no_item_of_another_one():
    reader = RealtimeReader()
    reader.read(delta(GENERATIONS[1]))
    assert reader.read({"type": "response.done", "response": {"id": "other", "status": "completed"}}) == []
    assert reader.read(delta(GENERATIONS[1])) == [SpeechAudio("item_1", b"\1\2")]


def test_an_item_that_is_done_ends_all_its_parts():
    reader = RealtimeReader()
    reader.read(delta(GENERATIONS[1], content_index=2))
    assert reader.read({"type": "response.output_item.done", "item": {"id": "item_1"}}) == [SpeechEnd("item_1#2")]


@pytest.mark.parametrize("kind", ["session.created", "session.updated"])
@pytest.mark.parametrize("of_input", [lambda given: {"audio": {"input": given}}, lambda given: given])
def test_a_user_who_may_not_interrupt_the_model_does_not_interrupt_the_avatar(kind, of_input):
    reader = RealtimeReader()
    speaks = {"type": "input_audio_buffer.speech_started"}
    assert reader.read(speaks) == [SpeechCancel()]
    told = {"turn_detection": {"type": "server_vad", "interrupt_response": False}}
    assert reader.read({"type": kind, "session": of_input(told)}) == [] and reader.read(speaks) == []
    assert reader.read({"type": kind, "session": of_input({})}) == [] and reader.read(speaks) == []
    assert reader.read({"type": "response.cancel"}) == [SpeechCancel()]
    reader.read({"type": kind, "session": of_input({"turn_detection": {"interrupt_response": True}})})
    assert reader.read(speaks) == [SpeechCancel()]


@pytest.mark.parametrize(
    "kind",
    [
        "response.created",
        "response.output_audio_transcript.delta",
        "response.done",
        "conversation.item.added",
        "rate_limits.updated",
        "input_audio_buffer.append",
        "session.created",
        "error",
    ],
)
def test_other_events_of_a_model_are_ignored(kind):
    assert is_realtime(kind) and RealtimeReader().read({"type": kind, "audio": "AAAA"}) == []


def test_the_speech_protocols_own_messages_are_no_realtime_events():
    assert not any(map(is_realtime, ("speech.start", "session.ready", "session.closing", "playback.started")))


@pytest.mark.parametrize(
    "session",
    [
        {"output_audio_format": "g711_ulaw"},
        {"audio": {"output": {"format": {"type": "audio/pcmu"}}}},
        {"audio": {"output": {"format": {"type": "audio/pcm", "rate": 16_000}}}},
    ],
)
def test_a_session_in_another_format_is_an_error(session):
    with pytest.raises(SpeechFormatError, match="set its output to audio/pcm, 24 kHz"):
        RealtimeReader().read({"type": "session.updated", "session": session})


@pytest.mark.parametrize(
    "session", [{}, {"output_audio_format": "pcm16"}, {"audio": {"output": {"format": {"type": "audio/pcm"}}}}, 7]
)
def test_a_session_in_pcm_is_no_error(session):
    assert RealtimeReader().read({"type": "session.created", "session": session}) == []


@pytest.mark.parametrize(
    "change", [{"item_id": None}, {"item_id": ""}, {"delta": "@"}, {"delta": 7}, {"content_index": -1}]
)
def test_malformed_sound_is_refused(change):
    with pytest.raises(ProtocolError):
        RealtimeReader().read(delta(GENERATIONS[0], **change))


def test_each_part_of_an_item_is_an_utterance_and_its_truncation_names_the_part():
    reader = RealtimeReader()
    assert reader.read(delta(GENERATIONS[0], content_index=2))[0] == SpeechStart("item_1#2", 24_000)
    assert truncation("item_1#2", 36_000) == Truncate("item_1", 2, 1500)
    assert truncation("item_1", 23) == Truncate("item_1", 0, 0)  # never more than was heard


@pytest.mark.slow
@pytest.mark.asyncio(loop_scope="session")
async def test_events_of_a_model_make_the_avatar_speak_and_an_interruption_truncates_the_item(serving):
    async with serving() as client, client.speech(await client.open_session()) as speech:
        for name, item in zip(GENERATIONS, ("old", "new"), strict=True):
            events = ({"type": "response.created"}, delta(name, item, PCM), done(name, item), {"type": "response.done"})
            for event in events:
                await speech.socket.send_str(json.dumps(event))
            assert await speech.receive_until(Finished) == Finished(item, len(PCM) // 2, False)
        await speech.socket.send_str(json.dumps(delta(GENERATIONS[1], "long", PCM * 20)))
        assert (await speech.receive_until(Started)).id == "long"
        await asyncio.sleep(0.3)
        await speech.socket.send_str(json.dumps({"type": "input_audio_buffer.speech_started"}))
        heard = await speech.receive_until(Finished)
        assert heard.interrupted and 0 < heard.position_samples < 20 * len(PCM) // 2
        assert await speech.receive() == Truncate("long", 0, heard.position_samples // 24)
        await speech.socket.send_str(json.dumps(delta(GENERATIONS[1], "long", PCM)))  # late: ignored, not refused
        await speech.socket.send_str(json.dumps(delta(GENERATIONS[1], "bad", delta="@")))
        assert isinstance(await speech.receive(), Failure)


@pytest.mark.asyncio(loop_scope="session")
async def test_sound_torn_between_deltas_is_joined(serving):
    async with serving() as client, client.speech(await client.open_session()) as speech:
        for pcm in (PCM[:1001], PCM[1001:2000], PCM[2000:]):
            await speech.socket.send_str(json.dumps(delta(GENERATIONS[1], pcm=pcm)))
        await speech.socket.send_str(
            json.dumps({"type": "response.done", "response": {"id": "r", "status": "completed"}})
        )
        assert await speech.receive_until(Finished) == Finished("item_1", len(PCM) // 2, False)


@pytest.mark.asyncio(loop_scope="session")
async def test_a_realtime_client_is_told_that_this_is_no_model(serving, problem):
    async with serving() as client:
        async with client.http.ws_connect("/v1/realtime", params={"model": "gpt-realtime"}) as socket:
            event = await socket.receive_json()
            assert event["type"] == "error" and "/v1/sessions/{id}/speech" in event["error"]["message"]
            await socket.receive()
            assert socket.close_code == 1008
        async with client.http.get("/v1/realtime") as reply:
            assert "connect to your model" in await problem(reply, 404, "not-found")
