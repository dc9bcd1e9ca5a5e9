"""CORS: pages of origins that the operator names may use the API, and read what it answers."""

from __future__ import annotations

import pytest

from engine.errors import SettingError
from streaming.server.cors import Cors

pytestmark = pytest.mark.asyncio(loop_scope="session")

APP = "https://app.example"


async def test_a_named_origin_may_ask_and_read(serving):
    async with serving(cors_origins=(APP,)) as client:
        asked = {"Origin": APP, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "if-match"}
        for path in ("/v1/sessions", "/v1/sessions/any/whep", "/v1/sessions/any/whep/viewer", "/capacity"):
            async with client.http.options(path, headers=asked) as reply:
                assert reply.status == 204, path
                assert reply.headers["Access-Control-Allow-Origin"] == APP and reply.headers["Vary"] == "Origin"
                assert "PATCH" in reply.headers["Access-Control-Allow-Methods"]
                assert "If-Match" in reply.headers["Access-Control-Allow-Headers"]
        async with client.http.post("/v1/sessions", json={"avatar": "speaker"}, headers={"Origin": APP}) as reply:
            assert reply.status == 201 and reply.headers["Access-Control-Allow-Origin"] == APP
            assert "Location" in reply.headers["Access-Control-Expose-Headers"]
            session = await reply.json()
        async with client.http.delete(f"/v1/sessions/{session['id']}", headers={"Origin": APP}) as reply:
            assert reply.status == 401 and reply.headers["Access-Control-Allow-Origin"] == APP
        params = {"token": session["token"]}
        async with client.http.ws_connect(session["speech"], params=params, headers={"Origin": APP}):
            pass


async def test_others_stay_out(serving, problem):
    other = {"Origin": "https://other.example"}
    for origins in ((), (APP,)):
        async with serving(cors_origins=origins) as client:
            asked = other | {"Access-Control-Request-Method": "POST"}
            async with client.http.options("/v1/sessions", headers=asked) as reply:
                await problem(reply, 403, "forbidden")
            for method, path in (
                ("POST", "/v1/sessions"),
                ("PUT", "/v1/avatars/speaker"),
                ("PATCH", "/v1/avatars/speaker"),
                ("DELETE", "/v1/avatars/speaker"),
            ):
                async with client.http.request(method, path, json={"avatar": "speaker"}, headers=other) as reply:
                    assert "--cors-origins" in await problem(reply, 403, "forbidden")
            async with client.http.get("/v1/avatars", headers=other) as reply:
                assert reply.status == 200 and "Access-Control-Allow-Origin" not in reply.headers


async def test_a_star_lets_every_page_in(serving):
    async with serving(cors_origins=("*",)) as client:
        headers = {"Origin": "https://anywhere.example"}
        async with client.http.post("/v1/sessions", json={"avatar": "speaker"}, headers=headers) as reply:
            assert reply.status == 201 and reply.headers["Access-Control-Allow-Origin"] == headers["Origin"]


@pytest.mark.parametrize("origin", ["app.example", "https://app.example/page", "ftp://app.example"])
async def test_an_invalid_origin_is_refused(origin):
    with pytest.raises(SettingError, match="expected origins like"):
        Cors((origin,), own_names_only=False)
