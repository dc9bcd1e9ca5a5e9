"""The addresses in answers lead their client back: with its token, and below the prefix of its proxy."""

from __future__ import annotations

import pytest
from whep_client import SDP, a_good_offer, bearer

from engine.errors import SettingError
from streaming.server.address import checked_base_path
from streaming.server.auth import Secrets

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.parametrize("route", ["whep", "offer"])
async def test_a_viewer_that_has_nothing_but_an_address_with_a_token_can_leave(serving, route):
    async with serving() as client:
        session = await client.open_session()
        url, offer = f"/v1/sessions/{session['id']}/{route}?token={session['token']}", await a_good_offer()
        body = {"json": {"sdp": offer, "type": "offer"}} if route == "offer" else {"data": offer, "headers": SDP}
        async with client.http.post(url, **body) as reply:
            assert reply.status == 201
            location, etag = reply.headers["Location"], reply.headers["ETag"]
        headers = {"Content-Type": "application/trickle-ice-sdpfrag", "If-Match": etag}
        async with client.http.patch(location, data="a=end-of-candidates\r\n", headers=headers) as reply:
            assert reply.status == 204
        async with client.http.delete(location) as reply:
            assert reply.status == 200


async def test_a_viewer_that_sends_a_header_gets_an_address_without_the_token(serving):
    async with serving() as client:
        session = await client.open_session()
        headers = SDP | bearer(session)
        async with client.http.post(session["whep"], data=await a_good_offer(), headers=headers) as reply:
            assert "token" not in reply.headers["Location"]


async def test_a_session_that_was_opened_with_a_key_in_the_address_can_be_used_by_its_addresses_alone(serving):
    async with serving(secrets=Secrets(keys=("key",))) as client:
        async with client.http.post("/v1/sessions?token=key", json={"avatar": "speaker"}) as reply:
            session, location = await reply.json(), reply.headers["Location"]
            assert "key" not in location
        async with client.http.ws_connect(session["speech"]) as socket:
            assert (await socket.receive_json())["type"] == "session.ready"
        async with client.http.post(session["whep"], data=await a_good_offer(), headers=SDP) as reply:
            assert reply.status == 201
        async with client.http.delete(location) as reply:
            assert reply.status == 204


@pytest.mark.parametrize(
    ("config", "headers", "prefix"),
    [
        ({"base_path": "/avatar/"}, {}, "/avatar"),
        ({"proxies": 1}, {"X-Forwarded-Prefix": "/a/b"}, "/a/b"),
        ({"proxies": 1, "base_path": "/c"}, {"X-Forwarded-Prefix": "//evil.example"}, "/c"),
        ({}, {"X-Forwarded-Prefix": "/a"}, ""),  # of no proxy of ours
    ],
)
async def test_addresses_are_below_the_prefix_of_a_proxy(serving, config, headers, prefix):
    async with serving(**config) as client:
        async with client.http.post("/v1/sessions", json={"avatar": "speaker"}, headers=headers) as reply:
            session = await reply.json()
            assert reply.headers["Location"] == f"{prefix}/v1/sessions/{session['id']}"
            assert session["whep"] == f"{prefix}/v1/sessions/{session['id']}/whep"
        async with client.http.get("/v1/avatars", headers=headers) as reply:
            (avatar,) = (await reply.json())["avatars"]
            assert avatar["thumbnail"] == f"{prefix}/v1/avatars/speaker/thumbnail.jpg"


async def test_a_base_path_that_is_none_is_refused():
    with pytest.raises(SettingError, match="--base-path avatar"):
        checked_base_path("avatar")
