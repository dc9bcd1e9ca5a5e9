"""Avatars that clients make: upload, state, the list, changes, and the folder that keeps them. A small program, which
copies an avatar that was enrolled before, stands for the process that does the work."""

from __future__ import annotations

import asyncio
import io
import json
import re
import sys
import zipfile

import aiohttp
import pytest

from streaming.config import EnrolmentsConfig
from streaming.server.auth import Secrets

pytestmark = pytest.mark.asyncio(loop_scope="session")

WORK = """
import json, shutil, sys
job = json.loads(sys.stdin.readline())
def tell(event, **fields): print(json.dumps({"event": event, **fields}), flush=True)
tell("progress", stage="idle", done=2, total=4, left_s=2.0)
tell("remark", code="dark", text=f"{job['video']}: the face is dark", at_s=1.5)
if sys.argv[2:]:
    tell("error", code=sys.argv[2], message=job["video"] + ": no face (at 1.50 s)", at_s=1.5)
    sys.exit(2)
shutil.copy(sys.argv[1], job["output"])
tell("finished", report={"used_s": 6.0, "job": job})
"""
CONSENT = "Anna agreed, 28 November 2026"


@pytest.fixture
def made(avatar_path, tmp_path):
    """Settings of a server whose enrolments are copies of the test avatar, kept in `tmp_path / made`."""

    def settings(*arguments, **others):
        program = (sys.executable, "-c", WORK, str(avatar_path), *arguments)
        return EnrolmentsConfig(**{"program": program, "folder": tmp_path / "made"} | others)

    return settings


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The folder for temporary files."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    return tmp_path / "tmp"


@pytest.fixture
def clip(short_clip):
    return short_clip.read_bytes()


def form(video, name="anna", consent=CONSENT):
    data = aiohttp.FormData(quote_fields=False, default_to_multipart=True)
    for field, text in {"name": name, "consent": consent}.items():
        if text is not None:
            data.add_field(field, text)
    if video is not None:
        data.add_field("video", video, filename="my talk.MP4")
    return data


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


async def names(client):
    async with client.http.get("/v1/avatars") as reply:
        return [avatar["name"] for avatar in (await reply.json())["avatars"]]


async def enrol(client, video, name="anna", **headers):
    """The last event of an enrolment, and its token."""
    async with client.http.post("/v1/avatars", data=form(video, name), headers=headers) as reply:
        assert reply.status == 201, await reply.text()
        job = await reply.json()
        assert reply.headers["Location"] == job["urls"]["self"] == f"/v1/enrolments/{job['id']}"
    async with client.http.get(job["urls"]["events"], headers=bearer(job["token"])) as reply:
        text = (await reply.read()).decode()
    events = [json.loads(data) for data in re.findall(r"^event: enrolment\ndata: (.*)$", text, re.MULTILINE)]
    return events[-1], job["token"]


async def test_a_video_becomes_an_avatar_of_the_running_server_and_leaves_no_footage(serving, clip, made, place):
    async with serving(enrolments=made()) as client:
        last, token = await enrol(client, clip)
        assert last["status"] == "finished" and last["name"] == "anna" and last["stage"] == "load"
        assert last["remarks"] == [{"code": "dark", "text": "my talk.MP4: the face is dark", "at_s": 1.5}]
        assert last["report"]["job"]["options"] == {"name": "anna", "consent": CONSENT}
        assert str(place) not in json.dumps(last), "clients need not know the server's folders"
        assert await names(client) == ["speaker", "anna"]
        async with client.http.post("/v1/sessions", json={"avatar": "anna"}) as reply:
            assert reply.status == 201
        async with client.http.get(last["urls"]["report"], headers=bearer(token)) as reply:
            assert "<html" in await reply.text() and "sandbox" in reply.headers["Content-Security-Policy"]
        async with client.http.get(last["urls"]["result"], headers=bearer(token)) as reply:
            assert (await reply.read()).startswith(b"PK")
        async with asyncio.timeout(30):
            while list(place.glob("*/*")):
                await asyncio.sleep(0.01)


async def test_made_avatars_are_there_again_after_a_restart_and_damaged_files_hinder_none(
    serving, clip, made, place, tmp_path
):
    async with serving(enrolments=made()) as client:
        await enrol(client, clip, "Änna 2")
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["Änna 2.avatar"]
    (tmp_path / "made" / "broken.avatar").write_bytes(b"PK nothing")
    async with serving(enrolments=made()) as client:
        assert await names(client) == ["speaker", "Änna 2"]
    async with serving() as client:
        assert await names(client) == ["speaker"], "another server has other avatars"


async def test_without_a_folder_made_avatars_end_with_the_server(serving, clip, made, place):
    async with serving(enrolments=made(folder=None)) as client:
        await enrol(client, clip)
        assert "anna" in await names(client)
    assert not list(place.iterdir())


@pytest.mark.slow
async def test_a_made_avatar_is_renamed_and_deleted_and_a_finished_file_is_uploaded(
    serving, clip, made, place, tmp_path, problem, avatar_path
):
    async with serving(enrolments=made()) as client:
        http = client.http
        async with http.put("/v1/avatars/ben", data=io.BytesIO(avatar_path.read_bytes())) as reply:
            assert reply.status == 201, await reply.text()
        async with http.patch("/v1/avatars/ben", json={"name": "Ben B.-2", "consent": "Ben agreed"}) as reply:
            assert reply.status == 204, await reply.text()
        async with http.get("/v1/avatars/Ben B.-2") as reply:
            shown = await reply.json()
        assert shown["consent"] == "Ben agreed" and shown["made"] and shown["seconds"] > 1
        assert await names(client) == ["speaker", "Ben B.-2"]
        async with http.get("/v1/avatars/Ben B.-2/file") as reply:
            again = await reply.read()
        async with http.put("/v1/avatars/copy", data=io.BytesIO(again)) as reply:
            assert reply.status == 201, "a changed file is a whole avatar"
        session = await open_session(http, "copy")
        for method, body in (("DELETE", None), ("PATCH", {"name": "other"})):
            async with http.request(method, "/v1/avatars/copy", json=body) as reply:
                assert "open sessions" in await problem(reply, 409, "conflict")
        async with http.delete(f"/v1/sessions/{session['id']}", headers=bearer(session["token"])):
            pass
        for name in ("copy", "Ben B.-2"):
            async with http.delete(f"/v1/avatars/{name}") as reply:
                assert reply.status == 204
        assert await names(client) == ["speaker"] and not list((tmp_path / "made").iterdir())


async def open_session(http, avatar):
    async with http.post("/v1/sessions", json={"avatar": avatar}) as reply:
        return await reply.json()


@pytest.mark.parametrize(
    ("change", "status", "code", "field", "expected"),
    [
        ({"name": None}, 400, "protocol", "name", "no name"),
        ({"name": "../../etc/x"}, 400, "protocol", "name", "cannot be an avatar's name"),
        ({"name": ".hidden"}, 400, "protocol", "name", "cannot be"),
        ({"name": "a" * 65}, 400, "protocol", "name", "at most 64"),
        ({"name": "speaker"}, 409, "avatar-exists", "name", "there is an avatar 'speaker'"),
        ({"consent": None}, 400, "protocol", "consent", "no consent"),
        ({"consent": "  \n"}, 400, "protocol", "consent", "who agreed to what"),
        ({"video": None}, 400, "protocol", "video", "no video"),
        ({"video": b"no video"}, 422, "not-a-video", "video", "my talk.MP4: is no video"),
    ],
)
async def test_a_field_that_does_not_fit_is_named(
    serving, clip, made, place, problem, change, status, code, field, expected
):
    async with serving(enrolments=made()) as client:
        async with client.http.post("/v1/avatars", data=form(**{"video": clip} | change)) as reply:
            assert expected in await problem(reply, status, code)
            assert (await reply.json())["field"] == field
        assert not list(place.glob("*/*")), "nothing is kept of a refused upload"


async def test_a_video_that_is_refused_says_why_and_its_name_is_free_again(serving, clip, made, place, tmp_path):
    async with serving(enrolments=made("no-face")) as client:
        for _ in range(2):
            last, _ = await enrol(client, clip)
            assert last["status"] == "failed" and last["report"] is None and await names(client) == ["speaker"]
            error = {"code": "no-face", "message": "my talk.MP4: no face (at 1.50 s)", "at_s": 1.5, "field": "video"}
            assert last["error"] == error
    assert not list((tmp_path / "made").iterdir())


async def test_a_file_that_is_no_avatar_is_refused_and_not_kept(serving, made, place, tmp_path, problem):
    async with serving(enrolments=made()) as client:
        for body, expected in ((b"PK nothing", "anna.avatar"), (b"", "anna.avatar")):
            async with client.http.put("/v1/avatars/anna", data=body) as reply:
                detail = await problem(reply, 422, "avatar-file")
                assert expected in detail and str(tmp_path) not in detail
        async with client.http.put("/v1/avatars/speaker", data=b"PK") as reply:
            await problem(reply, 409, "avatar-exists")
        assert not list((tmp_path / "made").iterdir()) and await names(client) == ["speaker"]


@pytest.mark.slow
async def test_an_avatar_whose_video_does_not_decode_is_refused(serving, made, place, tmp_path, problem, avatar_path):
    with zipfile.ZipFile(avatar_path) as whole, zipfile.ZipFile(tmp_path / "short.avatar", "w") as short:
        for member in whole.namelist():
            data = whole.read(member)
            short.writestr(member, damaged(data) if member == "idle.mp4" else data)
    async with serving(enrolments=made()) as client:
        body = io.BytesIO((tmp_path / "short.avatar").read_bytes())
        async with client.http.put("/v1/avatars/anna", data=body) as reply:
            detail = await problem(reply, 422, "avatar-file")
            assert detail.startswith("anna.avatar: ") and str(tmp_path) not in detail
        assert not list((tmp_path / "made").iterdir()) and await names(client) == ["speaker"]


def damaged(video):
    """The video, with a tenth of its pictures overwritten; its index is whole."""
    begin, size = video.index(b"mdat") + 4, len(video) // 10
    return video[: begin + 5 * size] + b"\xff" * size + video[begin + 6 * size :]


async def test_uploads_of_avatars_have_a_limit_of_bytes(serving, made, place, problem):
    async with (
        serving(enrolments=made(max_bytes=1000)) as client,
        client.http.put("/v1/avatars/anna", data=bytes(2000)) as reply,
    ):
        assert "MiB" in await problem(reply, 413, "request-entity-too-large")


async def test_avatars_of_the_operator_and_unknown_ones_cannot_be_changed(serving, made, place, problem):
    async with serving(enrolments=made()) as client:
        for method, body in (("DELETE", None), ("PATCH", {"name": "other"})):
            async with client.http.request(method, "/v1/avatars/speaker", json=body) as reply:
                assert "operator" in await problem(reply, 403, "forbidden")
            async with client.http.request(method, "/v1/avatars/nobody", json=body) as reply:
                await problem(reply, 404, "unknown-avatar")
        for body in ({}, {"name": 7}, {"age": "7"}, ["name"]):
            async with client.http.patch("/v1/avatars/speaker", json=body) as reply:
                assert "JSON object with name or consent" in await problem(reply, 400, "protocol")


async def test_making_and_changing_avatars_needs_a_key_and_a_token_opens_its_enrolment_alone(
    serving, clip, made, place, problem
):
    async with serving(enrolments=made(), secrets=Secrets(keys=("key",))) as client:
        for method, path in (
            ("POST", "/v1/avatars"),
            ("GET", "/v1/enrolments"),
            ("GET", "/v1/avatars/speaker"),
            ("PUT", "/v1/avatars/anna"),
            ("PATCH", "/v1/avatars/speaker"),
            ("DELETE", "/v1/avatars/speaker"),
            ("GET", "/v1/avatars/speaker/file"),
            ("GET", "/v1/avatars/speaker/report"),
        ):
            async with client.http.request(method, path) as reply:
                await problem(reply, 401, "unauthorized")
        one, token = await enrol(client, clip, "one", **bearer("key"))
        other, _ = await enrol(client, clip, "other", **bearer("key"))
        for name in ("self", "events", "report", "result"):
            for given, status in ((token, 200), ("key", 200), ("", 401)):
                async with client.http.get(one["urls"][name], headers=bearer(given)) as reply:
                    assert reply.status == status
        async with client.http.get(other["urls"]["result"], headers=bearer(token)) as reply:
            await problem(reply, 401, "unauthorized")
        async with client.http.get("/v1/enrolments", headers=bearer("key")) as reply:
            listing = await reply.json()
        assert [job["name"] for job in listing["enrolments"]] == ["one", "other"] and token not in json.dumps(listing)


async def test_a_server_may_make_no_avatars(serving, clip, problem):
    async with serving(enrolments=EnrolmentsConfig(at_once=0)) as client:
        for method, path in (("POST", "/v1/avatars"), ("GET", "/v1/enrolments"), ("PUT", "/v1/avatars/anna")):
            async with client.http.request(method, path, data=form(clip)) as reply:
                assert "--enrolments.at-once 1" in await problem(reply, 403, "forbidden")


async def test_two_enrolments_of_one_name_are_one(serving, clip, made, place, problem):
    sleeps = (sys.executable, "-c", "import sys, time; sys.stdin.readline(); time.sleep(60)")
    async with serving(enrolments=made(program=sleeps)) as client:
        async with client.http.post("/v1/avatars", data=form(clip)) as reply:
            job = await reply.json()
        async with client.http.post("/v1/avatars", data=form(clip)) as reply:
            assert "is being made" in await problem(reply, 409, "avatar-exists")
        async with client.http.delete(job["urls"]["self"], headers=bearer(job["token"])) as reply:
            assert reply.status == 204
        async with client.http.post("/v1/avatars", data=form(clip)) as reply:
            assert reply.status == 201, "an enrolment that was deleted leaves its name free"
