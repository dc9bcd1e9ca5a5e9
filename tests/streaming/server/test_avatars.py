"""Avatars that are loaded and unloaded while the server runs."""

from __future__ import annotations

import asyncio
import gc
import math
import shutil
import weakref

import pytest

from engine.live.engine import Engine
from streaming.config import ServerConfig
from streaming.server.app import Server
from streaming.server.auth import Secrets
from streaming.server.avatars import Avatars, resident_bytes

pytestmark = pytest.mark.asyncio(loop_scope="session")


def names(reply):
    return [avatar["name"] for avatar in reply["avatars"]]


async def test_an_avatar_is_loaded_and_unloaded_by_holders_of_a_key(serving, engine, avatar_path, tmp_path, problem):
    path, key = tmp_path / "anna.avatar", {"Authorization": "Bearer key"}
    shutil.copyfile(avatar_path, path)
    async with serving(secrets=Secrets(("key",))) as client:
        http = client.http
        async with http.post("/v1/avatars/anna/load", json={"path": str(path)}) as reply:
            await problem(reply, 401, "unauthorized")
        async with http.post("/v1/avatars/anna/load", headers=key) as reply:
            assert "path" in await problem(reply, 404, "unknown-avatar")
        async with http.post("/v1/avatars/anna/load", json={"path": str(path)}, headers=key) as reply:
            assert reply.status == 204
        async with http.get("/v1/avatars") as reply:
            assert names(await reply.json()) == ["speaker", "anna"]
        pipeline = weakref.ref(engine.pipelines["anna"])
        async with http.post("/v1/sessions", json={"avatar": "anna"}, headers=key) as reply:
            session = await reply.json()
        async with http.post("/v1/avatars/anna/unload", headers=key) as reply:
            assert "open sessions" in await problem(reply, 409, "conflict")
        async with http.delete(f"/v1/sessions/{session['id']}", headers=key) as reply:
            assert reply.status == 204
        async with http.get("/metrics", headers=key) as reply:
            assert 'personastream_avatar_bytes{avatar="anna"}' in await reply.text()
        for _ in range(2):
            async with http.post("/v1/avatars/anna/unload", headers=key) as reply:
                unloaded = reply.status
        assert unloaded == 404
        async with asyncio.timeout(30):
            while pipeline() is not None:  # its memory is free once the last picture of its session is done
                gc.collect()
                await asyncio.sleep(0.1)
        async with http.post("/v1/avatars/anna/load", headers=key) as reply:
            assert reply.status == 204, "it is known where it came from"
        async with http.post("/v1/avatars/anna/unload", headers=key) as reply:
            assert reply.status == 204


async def test_a_file_that_is_no_avatar_is_refused_and_the_others_stay(serving, tmp_path, problem):
    (tmp_path / "bad.avatar").write_bytes(b"PK nothing")
    async with serving() as client:
        for path in ("bad.avatar", "none.avatar"):
            async with client.http.post("/v1/avatars/bad/load", json={"path": str(tmp_path / path)}) as reply:
                assert path in await problem(reply, 422, "avatar-file")
        async with client.http.get("/v1/avatars") as reply:
            assert names(await reply.json()) == ["speaker"]


async def test_the_least_recently_used_avatar_makes_room_unless_it_is_in_use(avatar_path):
    async with Engine({"a": avatar_path}, max_load=math.inf) as engine:
        one = resident_bytes(engine.avatars["a"])
        in_use: set[str] = set()
        avatars = Avatars(engine, 2 * one, lambda: in_use, lambda pipeline: None)
        await avatars.load("b", avatar_path)
        avatars.used("a")
        await avatars.load("c", avatar_path)
        assert set(engine.avatars) == {"a", "c"}
        in_use.add("a")
        await avatars.load("d", avatar_path)
        assert set(engine.avatars) == {"a", "d"}
        in_use.add("d")
        with pytest.raises(Exception, match="all of the") as refused:
            await avatars.load("e", avatar_path)
        assert refused.value.code == "capacity" and set(engine.avatars) == {"a", "d"}


async def test_a_server_whose_avatars_exceed_the_bound_still_serves_them(avatar_path):
    async with (
        Engine({"a": avatar_path}, max_load=math.inf) as engine,
        Server(engine, ServerConfig(port=0, max_avatar_bytes=1), {}) as server,
    ):
        assert server.url and set(engine.avatars) == {"a"}
