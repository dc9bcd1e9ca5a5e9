"""Server keys, tokens that expire, and who may reach a server that has neither."""

from __future__ import annotations

import asyncio

import pytest

from engine.errors import SettingError
from streaming.config import ServerConfig
from streaming.server.app import Server
from streaming.server.auth import Secrets, Token
from streaming.speech.protocol import SpeechCancel, SpeechText, Started

pytestmark = pytest.mark.asyncio(loop_scope="session")

KEYS = Secrets(keys=("first-key", "second-key"))


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


async def test_a_server_with_keys_opens_sessions_and_numbers_to_each_of_them(serving, problem):
    async with serving(secrets=KEYS) as client:
        for method, path in (("POST", "/v1/sessions"), ("GET", "/capacity"), ("GET", "/metrics")):
            for headers in ({}, bearer("third-key"), bearer("first-key2"), {"Authorization": "Basic first-key"}):
                async with client.http.request(method, path, json={"avatar": "speaker"}, headers=headers) as reply:
                    assert "a key of this server" in await problem(reply, 401, "unauthorized")
                    assert reply.headers["WWW-Authenticate"].startswith("Bearer")
            for key in KEYS.keys:
                async with client.http.request(method, path, json={"avatar": "speaker"}, headers=bearer(key)) as reply:
                    assert reply.status in (200, 201)


async def test_health_lists_and_the_page_need_no_key(serving):
    async with serving(secrets=KEYS) as client:
        for path in ("/healthz", "/readyz", "/v1/avatars", "/v1/voices", "/v1/samples", "/", "/connection.js"):
            async with client.http.get(path) as reply:
                assert reply.status == 200, path


async def test_a_sessions_token_opens_nothing_of_the_server(serving, problem):
    async with serving(secrets=KEYS) as client:
        session = await client.open_session("first-key")
        async with client.http.get("/capacity", headers=bearer(session["token"])) as reply:
            assert "expected a server key" in await problem(reply, 403, "forbidden")


async def test_a_server_key_opens_every_session(serving, engine):
    async with serving(secrets=KEYS) as client:
        session = await client.open_session("first-key")
        async with client.http.delete(f"/v1/sessions/{session['id']}", headers=bearer("second-key")) as reply:
            assert reply.status == 204
        assert not engine.sessions


async def test_a_token_expires_and_a_server_key_replaces_it(serving, problem):
    async with serving(secrets=KEYS, token_ttl_s=0.2) as client:
        session = await client.open_session("first-key")
        assert session["expires_in_s"] == 0.2
        async with client.speech({**session, "token": "first-key"}) as speech:
            await asyncio.sleep(0.3)
            path = f"/v1/sessions/{session['id']}"
            for method, url in (("DELETE", path), ("POST", f"{path}/token"), ("GET", session["speech"])):
                async with client.http.request(method, url, headers=bearer(session["token"])) as reply:
                    assert "expired" in await problem(reply, 401, "unauthorized")
            async with client.http.post(f"{path}/token", headers=bearer("second-key")) as reply:
                assert reply.status == 200 and reply.headers["Cache-Control"] == "no-store"
                renewed = await reply.json()
            assert renewed["token"] != session["token"]
            await speech.send(SpeechText("still", "Here."))  # an open socket stays open
            assert (await speech.receive_until(Started)).id == "still"


async def test_a_token_is_valid_until_its_time_and_for_its_text_alone():
    token = Token(ttl_s=10.0, now=5.0)
    assert token.admits(token.text, 14.9) and not token.admits(token.text, 15.0)
    assert not token.admits(token.text + "x", 6.0) and not token.admits("", 6.0)
    assert Token(10.0, 5.0, "known").admits("known", 6.0)


async def test_a_good_token_replaces_itself(serving, problem):
    async with serving() as client:
        session = await client.open_session()
        path = f"/v1/sessions/{session['id']}"
        async with client.http.post(f"{path}/token", headers=bearer(session["token"])) as reply:
            renewed = (await reply.json())["token"]
        async with client.http.post(f"{path}/token", headers=bearer(session["token"])) as reply:
            await problem(reply, 401, "unauthorized")
        async with client.speech({**session, "token": renewed}) as speech:
            await speech.send(SpeechCancel())


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "", "192.0.2.1", "somewhere.example"])
async def test_without_a_key_the_server_stays_on_this_machine(engine, address):
    with pytest.raises(SettingError, match=r"no key is set.*PERSONASTREAM_API_KEY=.*--open"):
        Server(engine, ServerConfig(host=address), {})
    Server(engine, ServerConfig(host=address, open=True), {})
    Server(engine, ServerConfig(host=address), {}, secrets=KEYS)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
async def test_on_this_machine_no_key_is_needed(engine, address):
    Server(engine, ServerConfig(host=address), {})


async def test_a_page_that_names_itself_like_this_machine_is_refused(serving, problem):
    rebound = {"Host": "attacker.example:8080", "Origin": "http://attacker.example:8080"}
    async with serving() as client:
        async with client.http.post("/v1/sessions", json={"avatar": "speaker"}, headers=rebound) as reply:
            assert "answers to localhost alone" in await problem(reply, 403, "forbidden")
        async with client.http.get("/v1/avatars", headers={"Host": "attacker.example"}) as reply:
            await problem(reply, 403, "forbidden")
        for name in ("localhost:1", "127.0.0.1", "[::1]:8080", "me.localhost"):
            async with client.http.get("/v1/avatars", headers={"Host": name}) as reply:
                assert reply.status == 200, name
    for settings in ({"open": True}, {"secrets": KEYS}):
        async with serving(**settings) as client, client.http.get("/v1/avatars", headers=rebound) as reply:
            assert reply.status == 200


async def test_secrets_come_from_the_environment():
    found = Secrets.from_environment({"PERSONASTREAM_API_KEY": " a , b,,", "PERSONASTREAM_TURN_SECRET": "north"})
    assert found == Secrets(("a", "b"), "north")
    assert "north" not in repr(found) and "'a'" not in repr(found)
    assert Secrets.from_environment({}) == Secrets()
    assert not Secrets().admit("")
    for bad in ("two words", "schlüssel"):
        with pytest.raises(SettingError, match="visible ASCII"):
            Secrets.from_environment({"PERSONASTREAM_API_KEY": bad})
