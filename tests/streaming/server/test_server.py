"""The HTTP surface: routes, true status codes, problem documents, tokens and the life of sessions."""

from __future__ import annotations

import asyncio
import re
import wave
from urllib.parse import urlsplit

import aiohttp
import pytest
from clients import Client
from prometheus_client.parser import text_string_to_metric_families

from engine.backends.select import CPU, describe
from engine.config import LEVELS
from engine.errors import MediaError, PersonaStreamError
from engine.live.batching import BatchTimes
from engine.live.engine import Engine
from engine.live.quality import Pace
from streaming.config import ServerConfig
from streaming.server.app import Server
from streaming.server.auth import Secrets
from streaming.server.catalog import WEB, list_samples
from streaming.speech.protocol import SpeechCancel

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_health_readiness_and_capacity(serving, max_sessions):
    async with serving() as client:
        for path in ("/healthz", "/readyz"):
            async with client.http.get(path) as reply:
                assert reply.status == 200
        session = await client.open_session()
        async with client.http.get("/capacity") as reply:
            capacity = await reply.json()
            assert capacity.pop("quality") in LEVELS and "%" in capacity.pop("quality_reason")
            assert capacity.pop("frames_per_picture") >= 1
            assert capacity == {
                "sessions": 1,
                "max_sessions": max_sessions,
                "available": max_sessions - 1,
                "viewers": 0,
                "max_viewers": 64,
                "draining": False,
                "device": describe(CPU),
                "fallback": "",
            }
        assert session["whep"] == f"/v1/sessions/{session['id']}/whep"


async def test_avatars_are_listed_with_size_and_thumbnail(serving):
    async with serving() as client:
        async with client.http.get("/v1/avatars") as reply:
            (avatar,) = (await reply.json())["avatars"]
        assert avatar["name"] == "speaker" and avatar["width"] > 0 and avatar["height"] > 0
        async with client.http.get(avatar["thumbnail"]) as reply:
            assert reply.content_type == "image/jpeg"
            assert (await reply.read()).startswith(b"\xff\xd8")


async def test_pictures_of_people_need_a_key_or_token_where_there_is_one(serving, problem):
    thumbnail, secrets = "/v1/avatars/speaker/thumbnail.jpg", Secrets(keys=("key",))
    async with serving(secrets=secrets) as client:
        session = await client.open_session("key")
        async with client.http.get(thumbnail) as reply:
            await problem(reply, 401, "unauthorized")
        for secret in ("key", session["token"]):
            async with client.http.get(thumbnail, headers={"Authorization": f"Bearer {secret}"}) as reply:
                assert reply.status == 200
        async with client.http.get(f"/v1/avatars?token={session['token']}") as reply:
            (avatar,) = (await reply.json())["avatars"]
        async with client.http.get(avatar["thumbnail"]) as reply:
            assert reply.status == 200
    async with serving(secrets=secrets, public_catalog=True) as client, client.http.get(thumbnail) as reply:
        assert reply.status == 200


async def test_unknown_things_are_not_found(serving, problem):
    async with serving() as client:
        async with client.http.post("/v1/sessions", json={"avatar": "nobody"}) as reply:
            await problem(reply, 404, "unknown-avatar")
        async with client.http.get("/v1/avatars/nobody/thumbnail.jpg") as reply:
            await problem(reply, 404, "unknown-avatar")
        for path in ("/v1/nothing", "/nothing.js", "/v1/samples/none.wav", "/../pyproject.toml"):
            async with client.http.get(path) as reply:
                await problem(reply, 404, "not-found")
        async with client.http.delete("/v1/sessions/none") as reply:
            assert "POST /v1/sessions" in await problem(reply, 404, "not-found")
        async with client.http.put("/v1/sessions", json={}) as reply:
            await problem(reply, 405, "method-not-allowed")
            assert reply.headers["Allow"] == "POST"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"avatar": 7}', b"\xff\xfe"])
async def test_a_session_needs_an_avatars_name(serving, problem, body):
    async with serving() as client, client.http.post("/v1/sessions", data=body) as reply:
        assert '{"avatar": name}' in await problem(reply, 400, "protocol")


async def test_a_full_server_says_when_to_try_again(serving, problem, max_sessions):
    async with serving() as client:
        for _ in range(max_sessions):
            session = await client.open_session()
        async with client.http.post("/v1/sessions", json={"avatar": "speaker"}) as reply:
            await problem(reply, 503, "capacity")
            assert int(reply.headers["Retry-After"]) > 0
        bearer = {"Authorization": f"Bearer {session['token']}"}
        async with client.http.delete(f"/v1/sessions/{session['id']}", headers=bearer) as reply:
            assert reply.status == 204
        await client.open_session()


async def test_a_session_that_would_make_others_miss_is_refused_and_capacity_tells(avatar_path, problem):
    async with (
        Engine({"speaker": avatar_path}, max_sessions=3, max_load=0.9) as engine,
        Server(engine, ServerConfig(port=0), {}) as server,
        aiohttp.ClientSession(server.url) as http,
    ):
        engine.costs = BatchTimes(
            {level: {1: 0.015 * engine.backend.workers * Pace(level).run_frames} for level in LEVELS}
        )  # 3/8 of the device for each session
        client = Client(server, http)
        for available in (2, 1, 0):
            async with client.http.get("/capacity") as reply:
                assert (await reply.json())["available"] == available
            if available:
                await client.open_session()
        async with client.http.post("/v1/sessions", json={"avatar": "speaker"}) as reply:
            assert "one more would need 112% of the device" in await problem(reply, 503, "capacity")
            assert int(reply.headers["Retry-After"]) > 0


async def test_a_session_opens_to_its_own_token_alone(serving, problem):
    async with serving() as client:
        mine, other = await client.open_session(), await client.open_session()
        path = f"/v1/sessions/{mine['id']}"
        for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": f"Basic {mine['token']}"}):
            async with client.http.delete(path, headers=headers) as reply:
                await problem(reply, 401, "unauthorized")
                assert reply.headers["WWW-Authenticate"].startswith("Bearer")
        async with client.http.delete(path, headers={"Authorization": f"Bearer {other['token']}"}) as reply:
            assert "another session" in await problem(reply, 403, "forbidden")
        async with client.http.post(mine["whep"], data="v=0", headers={"Content-Type": "application/sdp"}) as reply:
            await problem(reply, 401, "unauthorized")
        async with client.http.get(mine["speech"]) as reply:
            await problem(reply, 401, "unauthorized")
        async with client.http.delete(path, params={"token": mine["token"]}) as reply:
            assert reply.status == 204
        async with client.http.delete(path, params={"token": mine["token"]}) as reply:
            assert "a client closed it" in await problem(reply, 410, "session-closed")


async def test_a_port_in_use_names_the_options(serving, engine):
    async with serving() as client:
        port = urlsplit(client.server.url).port
        with pytest.raises(PersonaStreamError, match=f"port {port} cannot be opened .*--host and --port"):
            async with Server(engine, ServerConfig(port=port), {}):
                pass


async def test_a_token_of_bytes_that_are_no_text_is_a_wrong_one(serving, problem):
    async with serving() as client:
        session = await client.open_session()
        url = urlsplit(client.server.url)
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        path = f"/v1/sessions/{session['id']}"
        writer.write(f"DELETE {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n".encode())
        writer.write(b"Authorization: Bearer \xff\xfe\r\n\r\n")
        reply = await reader.read()
        writer.close()
        await writer.wait_closed()
        assert reply.startswith(b"HTTP/1.1 401 ")
        async with client.http.delete(f"{path}?token=%ff") as refused:
            await problem(refused, 401, "unauthorized")


async def test_pages_of_other_sites_cannot_drive_the_server(serving, problem):
    async with serving() as client:
        own = {"Origin": client.server.url}
        session = await client.open_session()
        bearer = {"Authorization": f"Bearer {session['token']}"}
        for origin in ("https://elsewhere.example", "null", "http://localhost:1", "http://[", client.server.url + "0"):
            foreign = {"Origin": origin}
            async with client.http.post("/v1/sessions", json={"avatar": "speaker"}, headers=foreign) as reply:
                assert "a proxy that passes the Host header" in await problem(reply, 403, "forbidden")
            async with client.http.delete(f"/v1/sessions/{session['id']}", headers=foreign | bearer) as reply:
                await problem(reply, 403, "forbidden")
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await client.http.ws_connect(session["speech"], params={"token": session["token"]}, headers=foreign)
            assert refused.value.status == 403
            async with client.http.get("/v1/avatars", headers=foreign) as reply:
                assert reply.status == 200
        async with client.http.ws_connect(session["speech"], params={"token": session["token"]}, headers=own):
            pass
        async with client.http.delete(f"/v1/sessions/{session['id']}", headers=own | bearer) as reply:
            assert reply.status == 204


async def test_a_request_whose_body_comes_while_the_server_drains_gets_no_session(serving, problem, engine):
    async with serving() as client:

        async def body():
            yield b'{"avatar": '
            await asyncio.sleep(0.2)
            await client.server.drain()
            yield b'"speaker"}'

        async with client.http.post("/v1/sessions", data=body()) as reply:
            assert "shutting down" in await problem(reply, 503, "draining")
        assert not engine.sessions


async def test_an_odd_method_makes_no_label_of_its_own(serving):
    async with serving() as client:
        async with client.http.request("PROPFIND", "/v1/avatars") as reply:
            assert reply.status == 405
        async with client.http.get("/metrics") as reply:
            page = await reply.text()
        assert "PROPFIND" not in page and 'method="other"' in page


async def test_a_session_that_nobody_uses_is_closed(serving, engine):
    async with serving(idle_session_s=1.0) as client:
        session = await client.open_session()
        assert session["id"] in engine.sessions
        async with asyncio.timeout(30):
            while session["id"] in engine.sessions:
                await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_a_speech_socket_keeps_its_session_open(serving, engine):
    async with serving(idle_session_s=1.0) as client:
        session = await client.open_session()
        async with client.speech(session) as speech:
            await asyncio.sleep(1.5)
            await speech.send(SpeechCancel())
            assert session["id"] in engine.sessions
        async with asyncio.timeout(30):
            while session["id"] in engine.sessions:
                await asyncio.sleep(0.05)


async def test_closing_the_server_closes_its_sessions_and_sockets(serving, engine):
    async with serving() as client:
        session = await client.open_session()
        speech = client.speech(session)
        await speech.__aenter__()
        started = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - started < 30
    assert not engine.sessions


async def test_metrics_are_prometheus_text_without_session_ids(serving, engine):
    async with serving() as client:
        session = await client.open_session()
        async with client.http.get("/metrics") as reply:
            assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            page = await reply.text()
        assert session["id"] not in page
        found = {sample.name: 0 for family in text_string_to_metric_families(page) for sample in family.samples}
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                found[sample.name] += sample.value
        assert found["personastream_sessions"] == found["personastream_sessions_opened_total"] == 1
        assert 'personastream_http_requests_total{method="POST",route="/v1/sessions",status="201"} 1.0\n' in page
        assert found["personastream_avatar_bytes"] == engine.avatars["speaker"].path.stat().st_size
        assert f'personastream_device_info{{device="{describe(CPU)}",fallback=""}} 1.0' in page
        assert found["process_resident_memory_bytes"] > 1e7
        for name in (
            "personastream_first_frame_seconds_count",
            "personastream_interrupt_tail_seconds_count",
            "personastream_av_skew_seconds_count",
            "personastream_deadline_misses_total",
            "personastream_queue_depth_seconds",
            "personastream_viewers",
            "personastream_draining",
        ):
            assert name in found


async def test_page_is_whole_and_loads_nothing_from_elsewhere(serving):
    async with serving() as client:
        pages = {}
        for path in ("/", *(f"/{file.name}" for file in WEB.iterdir() if file.suffix in (".js", ".css", ".svg"))):
            async with client.http.get(path) as reply:
                assert reply.status == 200
                assert "default-src 'self'" in reply.headers["Content-Security-Policy"]
                pages[path] = await reply.text()
        assert len(pages) > 10
        assert not re.search(r"(?:src|href|url|import)\W{1,3}(?:https?:)?//", "".join(pages.values()))


async def test_samples_are_listed_and_served(serving, tmp_path):
    with wave.open(str(tmp_path / "good morning.wav"), "wb") as sound:
        sound.setparams((1, 2, 16_000, 0, "NONE", ""))
        sound.writeframes(bytes(16_000))
    async with serving(samples=list_samples(tmp_path)) as client:
        async with client.http.get("/v1/samples") as reply:
            (sample,) = (await reply.json())["samples"]
        assert sample == {"name": "good morning", "url": "/v1/samples/good%20morning.wav", "duration_s": 0.5}
        async with client.http.get(sample["url"]) as reply:
            assert reply.content_type == "audio/wav"
            assert await reply.read() == (tmp_path / "good morning.wav").read_bytes()


async def test_a_sample_that_is_no_wav_is_named(tmp_path):
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    with pytest.raises(MediaError, match=r"broken\.wav: not a PCM WAV file"):
        list_samples(tmp_path)
    with pytest.raises(MediaError, match="not a folder"):
        list_samples(tmp_path / "none")
