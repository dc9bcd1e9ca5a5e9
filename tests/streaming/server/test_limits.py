"""Limits of the server, each with the status that says whose limit it is."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from engine.errors import SettingError
from streaming.config import ServerConfig
from streaming.errors import QuotaError
from streaming.server.app import Server
from streaming.server.limits import MAX_ADDRESSES, SessionRate

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_one_address_opens_so_many_sessions_a_minute(serving, problem):
    async with serving(sessions_per_minute=2, proxies=1) as client:

        async def opened(address):
            headers = {"X-Forwarded-For": f"192.0.2.9, {address}"}
            async with client.http.post("/v1/sessions", json={"avatar": "speaker"}, headers=headers) as reply:
                if reply.status == 429:
                    assert "192.0.2.1 opened more than 2 sessions" in await problem(reply, 429, "quota")
                    assert 1 <= int(reply.headers["Retry-After"]) <= 31
                return reply.status

        assert [await opened("192.0.2.1") for _ in range(3)] == [201, 201, 429]
        assert await opened("192.0.2.2") == 201, "another address has its own share"
        assert await opened("192.0.2.1") == 429


async def test_forwarded_addresses_count_for_nothing_without_a_proxy(serving):
    async with serving(sessions_per_minute=1) as client:
        statuses = []
        for i in range(2):
            headers = {"X-Forwarded-For": f"192.0.2.{i}"}
            async with client.http.post("/v1/sessions", json={"avatar": "speaker"}, headers=headers) as reply:
                statuses.append(reply.status)
        assert statuses == [201, 429]


async def test_a_share_comes_back_with_time_and_the_memory_is_bounded():
    rate = SessionRate(2)
    rate.take("a", 0.0), rate.take("a", 0.0)
    with pytest.raises(QuotaError) as refused:
        rate.take("a", 0.0)
    assert refused.value.retry_after_s == 31
    rate.take("a", 30.0)
    with pytest.raises(QuotaError):
        rate.take("a", 30.0)
    for i in range(3 * MAX_ADDRESSES):
        rate.take(f"b{i}", 31.0)
    rate.take("a", 31.0), rate.take("a", 31.0)  # forgotten: the newest addresses alone are remembered
    for _ in range(1000):
        SessionRate(0).take("a", 0.0)


async def test_a_body_that_is_too_large_is_413(serving, problem):
    async with serving(max_body_bytes=1000) as client, client.http.post("/v1/sessions", data=b"x" * 1001) as reply:
        assert "1000" in await problem(reply, 413, "request-entity-too-large")


@pytest.mark.slow
async def test_a_session_lives_no_longer_than_it_may(serving, engine, problem):
    async with serving(max_session_s=1.5) as client:
        session = await client.open_session()
        async with client.speech(session) as speech:
            async with asyncio.timeout(30):
                while (message := await speech.socket.receive()).type is aiohttp.WSMsgType.TEXT:
                    pass
            assert message.type is aiohttp.WSMsgType.CLOSE and message.data == 1000
            assert message.extra.startswith("lifetime: ")
        async with client.http.get(session["events"], params={"token": session["token"]}) as reply:
            assert "as long as" in await problem(reply, 410, "session-closed")


@pytest.mark.parametrize(("name", "value", "expected"), [
    ("max_sessions", 0, "at least 1"),
    ("drain_s", -1, "at least 0"),
    ("token_ttl_s", 0, "at least 0.001"),
    ("proxies", -1, "at least 0"),
    ("port", 65_536, "at most 65535"),
    ("max_load", 0.0, "more than 0"),
    ("max_load", float("inf"), "more than 0"),
    ("max_load", float("nan"), "more than 0"),
])  # fmt: skip
async def test_limits_that_make_no_sense_are_refused(engine, name, value, expected):
    with pytest.raises(SettingError, match=f"--{name.replace('_', '-')} {value}; expected {expected}"):
        Server(engine, ServerConfig(**{name: value}), {})
