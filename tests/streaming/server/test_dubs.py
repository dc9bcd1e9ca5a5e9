"""Dubs over HTTP: upload, state, events, result, limits and end. Small programs stand for the process that does the
work, where its parent's behaviour is tested."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
import av
import pytest

from engine.errors import SettingError
from streaming.config import DubsConfig, ServerConfig, TimeoutConfig
from streaming.server.app import Server
from streaming.server.auth import Secrets
from streaming.server.jobs import Jobs

pytestmark = pytest.mark.asyncio(loop_scope="session")
ROOT = Path(__file__).parents[3]

BEGIN = """
import json, os, shutil, sys, time, wave
job = json.loads(sys.stdin.readline())
def tell(event, **fields): print(json.dumps({"event": event, **fields}), flush=True)
def progress(stage, done): tell("progress", stage=stage, done=done, total=4, left_s=4.0 - done)
"""
WORK = """
progress("faces", 2)
tell("remark", code="cut", text=f"{job['video']}: a cut", at_s=1.5)
shutil.copy(job["video"], job["output"])
open(job["options"]["report"], "w").write("<p>The report")
tell("finished", report={"output": job["output"], "pictures": 3, "job": job})
"""
WAIT = """
progress("faces", 1)
open(os.path.dirname(job["video"]) + "/pid", "w").write(str(os.getpid()))
while not os.path.exists(os.path.dirname(job["video"]) + "/go"): time.sleep(0.02)
"""


def child(*code):
    return DubsConfig(program=(sys.executable, "-c", "".join(code)))


@pytest.fixture(scope="module")
def clip(short_clip):
    """Two seconds of the bundled speaker, as bytes."""
    return short_clip.read_bytes()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The folder for temporary files."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def form(video=None, speech=None, **fields):
    data = aiohttp.FormData(quote_fields=False)
    for name, value in fields.items():
        data.add_field(name, value, filename="file" if isinstance(value, bytes) else None)
    if video is not None:
        data.add_field("video", video, filename="my talk.MP4")
    if speech is not None:
        data.add_field("speech", speech, filename="speech.wav")
    return data


@pytest.fixture
def sound(speech_wav):
    return speech_wav.read_bytes()


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


async def post(client, data, **headers):
    async with client.http.post("/v1/dubs", data=data, headers=headers) as reply:
        assert reply.status == 201, await reply.text()
        dub = await reply.json()
        assert reply.headers["Location"] == dub["urls"]["self"] == f"/v1/dubs/{dub['id']}"
        return dub


async def show(client, dub):
    async with client.http.get(dub["urls"]["self"], headers=bearer(dub["token"])) as reply:
        assert reply.status == 200, await reply.text()
        return await reply.json()


async def until(client, dub, *wanted):
    async with asyncio.timeout(60):
        while (status := await show(client, dub))["status"] not in wanted:
            await asyncio.sleep(0.02)
    return status


async def events(client, dub):
    """All events of a dub until its stream ends."""
    async with client.http.get(dub["urls"]["events"], headers=bearer(dub["token"])) as reply:
        assert reply.content_type == "text/event-stream"
        text = (await reply.read()).decode()
    return [json.loads(data) for data in re.findall(r"^event: dub\ndata: (.*)$", text, re.MULTILINE)]


def lives(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


async def begun(place, count=1):
    """The processes of the dubs that run, once they do."""
    async with asyncio.timeout(60):
        while len(files := [path for path in place.glob("*/*/pid") if path.read_text()]) < count:
            await asyncio.sleep(0.02)
    return {path.parent: int(path.read_text()) for path in files}


# ---- the whole way


async def test_an_upload_becomes_a_dub_that_can_be_followed_fetched_and_deleted(serving, clip, sound, place, problem):
    async with serving(dubs=child(BEGIN, WORK)) as client:
        dub = await post(client, form(clip, sound, length="cut", **{"from": "0.5", "face": "2", "mix": "12"}))
        followed = await events(client, dub)
        last = followed[-1]
        assert [event["status"] for event in followed][-1] == "finished" == (await show(client, dub))["status"]
        assert last["stage"] == "faces" and last["done"] == 2 and last["total"] == 4 and last["left_s"] == 2.0
        assert last["remarks"] == [{"code": "cut", "text": "my talk.MP4: a cut", "at_s": 1.5}]
        assert last["name"] == "my talk.MP4" and last["error"] is None and last["ahead"] is None
        assert 3500 < last["kept_s"] <= 3600
        job = last["report"]["job"]
        assert job["speech"] == {"2": "speech.wav"} and job["output"] == last["report"]["output"] == "dub.mp4"
        assert job["options"] | {"report": ""} == {
            "length": "cut",
            "from_s": 0.5,
            "to_s": None,
            "mix_db": 12.0,
            "report": "",
            "resume": False,
            "quality": "best",
        }
        assert str(place) not in json.dumps(followed), "clients need not know the server's folders"
        for name in ("result", "source"):
            async with client.http.get(last["urls"][name], headers=bearer(dub["token"])) as reply:
                assert reply.status == 200 and reply.content_type == "video/mp4" and await reply.read() == clip
                assert reply.headers["X-Content-Type-Options"] == "nosniff"
        part = bearer(dub["token"]) | {"Range": "bytes=100-199"}
        async with client.http.get(last["urls"]["result"], headers=part) as reply:
            assert reply.status == 206 and await reply.read() == clip[100:200]
            assert reply.headers["Content-Range"] == f"bytes 100-199/{len(clip)}"
        async with client.http.get(last["urls"]["report"], headers=bearer(dub["token"])) as reply:
            assert reply.content_type == "text/html" and "The report" in await reply.text()
            assert "sandbox" in reply.headers["Content-Security-Policy"], "it has the names of a stranger's files"
        async with client.http.delete(dub["urls"]["self"], headers=bearer(dub["token"])) as reply:
            assert reply.status == 204
        async with client.http.get(dub["urls"]["self"], headers=bearer(dub["token"])) as reply:
            await problem(reply, 404, "not-found")
        assert not list(place.glob("*/*"))


async def test_a_text_is_spoken_by_a_voice_of_the_server(serving, clip):
    check = """
with wave.open(job["speech"]["auto"]) as sound: seconds = sound.getnframes() / sound.getframerate()
tell("finished", report={"seconds": seconds})
"""
    async with serving(dubs=child(BEGIN, check)) as client:
        dub = await post(client, form(clip, text="Good morning to all of you.", voice="en-gb"))
        followed = await events(client, dub)
        assert "voice" in [event["stage"] for event in followed]
        assert 1.0 < followed[-1]["report"]["seconds"] < 5.0


async def test_two_speakers_have_a_sound_file_each(serving, clip, sound):
    async with serving(dubs=child(BEGIN, WORK)) as client:
        dub = await post(client, form(clip, **{"speech.1": sound, "speech.2": sound}))
        speech = (await events(client, dub))[-1]["report"]["job"]["speech"]
        assert list(speech) == ["1", "2"]


@pytest.mark.slow
async def test_dubs_run_one_after_another_at_low_priority_without_secrets(
    serving, clip, sound, place, monkeypatch, problem
):
    monkeypatch.setenv("PERSONASTREAM_API_KEY", "sesame")
    environment = "tell('remark', code='x', text=json.dumps([os.nice(0), dict(os.environ)]))\n"
    async with serving(dubs=child(BEGIN, WAIT, environment, WORK), secrets=Secrets(keys=("key",))) as client:
        dubs = [await post(client, form(clip, sound), **bearer("key")) for _ in range(3)]
        (folder,) = await begun(place)
        states = [await show(client, dub) for dub in dubs]
        assert [state["status"] for state in states] == ["running", "waiting", "waiting"]
        assert [state["ahead"] for state in states] == [None, 1, 2]
        async with client.http.get(states[0]["urls"]["self"] + "/result", headers=bearer("key")) as reply:
            assert "running" in await problem(reply, 409, "conflict")
        async with client.http.get("/metrics", headers=bearer("key")) as reply:
            metrics = await reply.text()
        assert 'personastream_dubs{state="running"} 1.0' in metrics and 'state="waiting"} 2.0' in metrics
        (folder / "go").touch()
        first = await until(client, dubs[0], "finished")
        nice, variables = json.loads(first["remarks"][0]["text"])
        assert nice == os.nice(0) + 10
        assert variables["TMPDIR"] and "PATH" in variables and "sesame" not in variables.values()
        await until(client, dubs[1], "running")
        assert (await show(client, dubs[2]))["ahead"] == 1


# ---- who may


@pytest.mark.slow
async def test_a_key_opens_all_dubs_and_a_dubs_token_opens_that_one(serving, clip, sound, problem):
    async with serving(dubs=child(BEGIN, WORK), secrets=Secrets(keys=("key",))) as client:
        for method in ("GET", "POST"):
            async with client.http.request(method, "/v1/dubs", data=form(clip, sound)) as reply:
                await problem(reply, 401, "unauthorized")
        one, other = [await post(client, form(clip, sound), **bearer("key")) for _ in range(2)]
        await until(client, other, "finished")
        for name in ("", "/events", "/result", "/source", "/report"):
            path = f"/v1/dubs/{one['id']}{name}"
            for token, status in ((one["token"], 200), ("key", 200), (other["token"], 401), ("", 401)):
                async with client.http.get(path, headers=bearer(token)) as reply:
                    assert reply.status == status, path
        async with client.http.get("/v1/dubs", headers=bearer("key")) as reply:
            listing = await reply.json()
        assert [dub["id"] for dub in listing["dubs"]] == [one["id"], other["id"]]
        assert listing["limits"] == {"max_bytes": 2 << 30, "max_s": 1800.0, "keep_s": 3600.0}
        assert one["token"] not in json.dumps(listing)
        async with client.http.get(f"/v1/dubs/{one['id']}?token={one['token']}") as reply:
            assert (await reply.json())["urls"]["result"].endswith(f"/result?token={one['token']}")


async def test_a_server_may_dub_nothing(serving, clip, sound, problem):
    async with serving(dubs=DubsConfig(at_once=0)) as client:
        for method in ("POST", "GET"):
            async with client.http.request(method, "/v1/dubs", data=form(clip, sound)) as reply:
                assert "--dubs.at-once 1" in await problem(reply, 403, "forbidden")


# ---- forms that do not fit


@pytest.mark.parametrize(
    ("change", "status", "code", "field", "expected"),
    [
        ({"video": None}, 400, "protocol", "video", "no video"),
        ({"speech": None}, 400, "protocol", "speech", "either a sound file"),
        ({"text": "Hello."}, 400, "protocol", "speech", "either a sound file"),
        ({"speech.2": b"RIFF"}, 400, "protocol", "speech", "either one"),
        ({"nonsense": "1"}, 400, "protocol", None, "a field 'nonsense'"),
        ({"length": "short"}, 400, "protocol", "length", "expected video, cut, loop, bounce, stretch"),
        ({"from": "soon"}, 400, "protocol", "from", "'soon'; expected a number"),
        ({"from": "-1"}, 400, "protocol", "from", "from -1.0; expected seconds"),
        ({"from": "2", "to": "1"}, 400, "protocol", "to", "after from"),
        ({"mix": "nan"}, 400, "protocol", "mix", "expected 0 to 60"),
        ({"face": "anna"}, 400, "protocol", "face", "expected a number"),
        ({"face": "0"}, 400, "protocol", "face", "expected a number from 1"),
        ({"video": b"no video at all"}, 422, "not-a-video", "video", "my talk.MP4: is no video"),
        ({"video": "sound"}, 422, "not-a-video", "video", "my talk.MP4: is no video"),
        ({"video": b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n"}, 422, "not-a-video", "video", "is no video"),
        ({"speech": b"no sound"}, 422, "speech-format", "speech", "holds no sound"),
        ({"speech": None, "text": "<speak/> "}, 400, "protocol", "text", "expected words"),
        ({"speech": None, "text": "a" * 5001}, 400, "protocol", "text", "at most 5000"),
        ({"speech": None, "text": "Hi.", "voice": "nobody"}, 422, "voice", "voice", "no voice 'nobody'"),
        ({"speech": None, "text": b"\xff"}, 400, "protocol", "text", "not UTF-8"),
    ],
)
async def test_a_field_that_does_not_fit_is_named(
    serving, clip, sound, place, problem, change, status, code, field, expected
):
    fields = {"video": clip, "speech": sound} | change
    fields["video"] = sound if fields["video"] == "sound" else fields["video"]
    async with serving(dubs=child(BEGIN, WORK)) as client:
        async with client.http.post("/v1/dubs", data=form(**fields)) as reply:
            assert expected in await problem(reply, status, code)
            assert (await reply.json()).get("field") == field
        assert not list(place.glob("*/*")), "nothing is kept of a refused upload"


async def test_a_body_that_is_no_form_is_refused(serving, problem):
    async with serving() as client:
        forms, part = (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n1\r\n',
        )
        for kind, body, status, code in (
            ("application/json", b"{}", 415, "unsupported-media-type"),
            ("multipart/form-data", b"?", 400, "protocol"),
            (forms, b"\x00?", 400, "protocol"),
            (forms, part % b"\x00", 400, "protocol"),
            (forms, part % b"from", 400, "protocol"),
            (forms, 40 * (part % b"from"), 400, "protocol"),
        ):
            async with client.http.post("/v1/dubs", data=body, headers={"Content-Type": kind}) as reply:
                await problem(reply, status, code)


# ---- limits


async def test_uploads_have_a_limit_of_bytes_whether_they_state_them_or_not(serving, clip, sound, place, problem):
    async def pieces():
        for start in range(0, len(clip), 10_000):
            yield clip[start : start + 10_000]

    async with serving(dubs=DubsConfig(max_bytes=50_000)) as client:
        for video in (clip + bytes(1 << 17), pieces()):
            async with client.http.post("/v1/dubs", data=form(video, sound)) as reply:
                assert "MiB" in await problem(reply, 413, "request-entity-too-large")
                assert (await reply.json())["field"] == "video"
        assert not list(place.glob("*/*"))


async def test_video_and_speech_have_a_limit_of_seconds(serving, clip, sound, problem):
    for seconds, field in ((1.5, "video"), (2.5, "speech")):
        async with (
            serving(dubs=DubsConfig(max_s=seconds)) as client,
            client.http.post("/v1/dubs", data=form(clip, sound)) as reply,
        ):
            assert "at most" in await problem(reply, 422, "too-long")
            assert (await reply.json())["field"] == field


@pytest.mark.slow
async def test_only_so_many_dubs_wait(serving, clip, sound, place, problem):
    dubs = child(BEGIN, WAIT, WORK)
    async with serving(dubs=DubsConfig(program=dubs.program, waiting=1)) as client:
        first = await post(client, form(clip, sound))
        await post(client, form(clip, sound))
        async with client.http.post("/v1/dubs", data=form(clip, sound)) as reply:
            assert "2 dubs run or wait" in await problem(reply, 503, "capacity")
            assert int(reply.headers["Retry-After"]) > 0
        async with client.http.delete(first["urls"]["self"], headers=bearer(first["token"])):
            pass
        await post(client, form(clip, sound))


async def test_an_upload_that_stalls_or_breaks_off_gives_its_place_back(serving, clip, place, problem, caplog):
    async def stalls():
        yield clip[:1000]
        await asyncio.sleep(60)

    timeouts = TimeoutConfig(upload_stall_s=0.5)
    async with serving(dubs=DubsConfig(waiting=0), timeouts=timeouts) as client:
        async with client.http.post("/v1/dubs", data=form(stalls())) as reply:
            assert "nothing came for 0.5 s" in await problem(reply, 408, "request-timeout")
        with caplog.at_level(logging.ERROR):
            leaving = asyncio.ensure_future(client.http.post("/v1/dubs", data=form(stalls())))
            async with asyncio.timeout(30):
                while not list(place.glob("*/*/video.mp4")):
                    await asyncio.sleep(0.01)
            leaving.cancel()
            async with asyncio.timeout(30):
                while list(place.glob("*/*")):
                    await asyncio.sleep(0.01)
        assert not caplog.records, "a client that leaves is no fault of the server"


async def test_a_full_disk_is_told(serving, clip, sound, place, problem):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with serving() as client:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        try:
            async with client.http.post("/v1/dubs", data=form(clip, sound)) as reply:
                assert "cannot keep the upload" in await problem(reply, 507, "storage")
                assert int(reply.headers["Retry-After"]) > 0
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert not list(place.glob("*/*"))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"at_once": -1}, "--dubs.at-once -1; expected at least 0"),
        ({"max_s": float("nan")}, "--dubs.max-s nan"),
        ({"kept": 0}, "--dubs.kept 0; expected at least 1"),
    ],
)
async def test_limits_that_make_no_sense_are_refused(engine, settings, expected):
    with pytest.raises(SettingError, match=expected):
        Server(engine, ServerConfig(dubs=DubsConfig(**settings)), {})


# ---- ends


@pytest.mark.parametrize(
    ("code", "error", "field", "message"),
    [
        ("no-face", 2, "video", "my talk.MP4: no face"),
        ("speech-format", 2, "speech", "my talk.MP4: no face"),
        ("clip-too-short", 2, "options", "my talk.MP4: no face"),
        ("dubbing", -signal.SIGSEGV, None, "my talk.MP4: the dubbing process was ended by SIGSEGV"),
    ],
)
async def test_a_dub_that_fails_says_why_and_keeps_no_footage(serving, clip, sound, place, code, error, field, message):
    fails = f"tell('error', code={code!r}, message=job['video'] + ': no face', at_s=1.5); sys.exit(2)"
    if error < 0:
        fails = f"os.kill(os.getpid(), {-error})"
    async with serving(dubs=child(BEGIN, fails)) as client:
        dub = await post(client, form(clip, sound))
        status = (await events(client, dub))[-1]
        assert status["status"] == "failed" and status["report"] is None
        assert status["error"]["code"] == code and status["error"]["field"] == field
        assert status["error"]["message"].startswith(message) and str(place) not in json.dumps(status)
        async with asyncio.timeout(30):
            while list(place.glob("*/*")):
                await asyncio.sleep(0.01)
        assert (await show(client, dub))["status"] == "failed", "its state stays"


async def test_a_dub_that_is_deleted_ends_its_process_and_its_event_streams(serving, clip, sound, place):
    async with serving(dubs=child(BEGIN, WAIT, WORK)) as client:
        dub = await post(client, form(clip, sound))
        (pid,) = (await begun(place)).values()
        following = asyncio.ensure_future(events(client, dub))
        await asyncio.sleep(0.1)
        async with client.http.delete(dub["urls"]["self"], headers=bearer(dub["token"])) as reply:
            assert reply.status == 204
        assert not lives(pid) and not list(place.glob("*/*"))
        assert (await following)[-1]["status"] == "deleted"


@pytest.mark.slow
async def test_a_server_that_ends_leaves_neither_process_nor_footage(serving, clip, sound, place):
    async def endless():
        yield clip
        await asyncio.sleep(60)

    async with serving(dubs=child(BEGIN, WAIT, WORK)) as client:
        dubs = [await post(client, form(clip, sound)) for _ in range(2)]
        (pid,) = (await begun(place)).values()
        following = asyncio.ensure_future(events(client, dubs[1]))
        uploading = asyncio.ensure_future(client.http.post("/v1/dubs", data=form(endless())))
        async with asyncio.timeout(30):
            while len(list(place.glob("*/*/video.mp4"))) < 3:
                await asyncio.sleep(0.01)
    assert not lives(pid) and not list(place.iterdir())
    for ended in (following, uploading):
        ended.cancel()
        await asyncio.wait([ended])
        with contextlib.suppress(aiohttp.ClientError, asyncio.CancelledError):
            ended.result()


async def test_the_next_server_deletes_what_a_killed_one_left(place):
    program = f"""
import asyncio, tempfile
tempfile.tempdir = {str(place)!r}
from streaming.config import DubsConfig
from streaming.server.jobs import Jobs
async def main():
    async with Jobs("dub", DubsConfig()) as dubs, dubs.place() as folder:
        (folder / "video.mp4").write_bytes(b"footage")
        print("begun", flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE) as killed:
        assert killed.stdout is not None and killed.stdout.readline() == b"begun\n"
        killed.kill()
    assert len(list(place.glob("*/*/video.mp4"))) == 1
    async with Jobs("dub", DubsConfig()):
        assert not list(place.glob("*/*"))
    assert not list(place.iterdir())


@pytest.mark.slow
async def test_finished_dubs_are_deleted_after_a_while_and_the_oldest_beyond_a_number(serving, clip, sound, place):
    program = child(BEGIN, WORK).program
    async with serving(dubs=DubsConfig(program=program, kept=1)) as client:
        _, second = [await post(client, form(clip, sound)) for _ in range(2)]
        await until(client, second, "finished")
        async with client.http.get("/v1/dubs") as reply:
            assert [dub["id"] for dub in (await reply.json())["dubs"]] == [second["id"]]
    async with serving(dubs=DubsConfig(program=program, keep_s=0.3)) as client:
        await post(client, form(clip, sound))
        async with asyncio.timeout(30):
            while list(place.glob("*/*")):
                await asyncio.sleep(0.02)
        async with client.http.get("/v1/dubs") as reply:
            assert (await reply.json())["dubs"] == []


async def test_a_silent_event_stream_of_a_dub_is_kept_alive_with_comments(serving, clip, sound, place):
    timeouts = TimeoutConfig(event_keepalive_s=0.1)
    async with serving(dubs=child(BEGIN, WAIT), timeouts=timeouts) as client:
        dub = await post(client, form(clip, sound))
        await begun(place)
        async with client.http.get(dub["urls"]["events"], headers=bearer(dub["token"])) as reply:
            lines = [await reply.content.readline() for _ in range(9)]
        assert b":\n" in lines


async def test_a_server_that_drains_takes_no_dub(serving, clip, sound, problem):
    async with serving() as client:
        await client.server.drain()
        async with client.http.post("/v1/dubs", data=form(clip, sound)) as reply:
            await problem(reply, 503, "draining")


@pytest.mark.slow
async def test_the_real_process_dubs_an_upload_with_a_typed_text(serving, clip, place):
    async with serving() as client:
        dub = await post(client, form(clip, text="Hello.", voice="en-us"))
        followed = await events(client, dub)
        last = followed[-1]
        assert last["status"] == "finished", last["error"]
        assert {"voice", "faces", "pictures", "file"} <= {event["stage"] for event in followed}
        assert last["report"]["pictures"] == 50 and last["report"]["changed"] > 10
        async with client.http.get(last["urls"]["result"], headers=bearer(dub["token"])) as reply:
            (place / "dub.mp4").write_bytes(await reply.read())
        with av.open(str(place / "dub.mp4")) as container:
            assert sum(1 for _ in container.decode(video=0)) == 50 and container.streams.audio
        async with client.http.get(last["urls"]["report"], headers=bearer(dub["token"])) as reply:
            assert "<html" in await reply.text() and str(place) not in await reply.text()
