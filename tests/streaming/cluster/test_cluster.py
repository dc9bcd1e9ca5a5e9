"""A cluster of three nodes: placement, access, the death of a node and of the director, drain."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import sys
from typing import Any

import pytest
import ray
from ray._private.ray_constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
from ray.experimental.internal_kv import _internal_kv_get
from ray_cluster import KEY, NODES, SESSIONS, bearer

from benchmarks.chromium import PROGRAM, open_page, until
from streaming.agents.client import open_avatar
from streaming.cluster.connection import start_director
from streaming.speech.protocol import Unit

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

# The ids of the sessions that the page opens.
OPENED = """window.opened = []; const get = window.fetch; window.fetch = async (url, options) => {
  const reply = await get(url, options);
  if (reply.status === 201 && String(url).endsWith("/v1/sessions")) opened.push((await reply.clone().json()).id);
  return reply; };"""


async def kill(actor: Any) -> None:
    """As `kill -9` does."""
    os.kill(await actor.__ray_call__.remote(lambda _: os.getpid()), signal.SIGKILL)


async def units(client: Any, count: int) -> None:
    async with asyncio.timeout(30):
        async for message in client:
            count -= isinstance(message, Unit)
            if not count:
                return


async def test_sessions_go_to_the_node_with_most_room_and_are_used_at_its_address(cluster):
    sessions = [await cluster.open() for _ in range(NODES)]
    assert len({session["url"].rpartition("/v1/")[0] for session in sessions}) == NODES
    assert all(session["speech"] == f"{session['url']}/speech" for session in sessions)
    await cluster.close(*sessions)
    async with open_avatar(cluster.url, "anna", KEY) as avatar:
        await units(avatar, 5)


async def test_a_key_opens_all_nodes_and_a_token_its_session_alone(cluster, problem):
    async with cluster.http.post("/v1/sessions", json={"avatar": "anna"}) as reply:
        await problem(reply, 401, "unauthorized")
    await cluster.all_ready()
    one, other = await cluster.open(), await cluster.open()
    assert one["url"].rpartition("/v1/")[0] != other["url"].rpartition("/v1/")[0]
    async with cluster.http.get(f"{other['url']}/publish", headers=bearer(one["token"])) as reply:
        await problem(reply, 401, "unauthorized")
    async with cluster.http.post("/v1/sessions", json={"avatar": "anna"}, headers=bearer(one["token"])) as reply:
        await problem(reply, 401, "unauthorized")
    for session, token in ((one, one["token"]), (one, KEY), (other, KEY)):
        async with cluster.http.get(f"{session['url']}/publish", headers=bearer(token)) as reply:
            assert reply.status == 200
    await cluster.close(one, other)


async def test_an_avatar_is_loaded_when_a_session_asks_for_it_and_its_node_is_preferred(cluster, problem):
    assert all(len(node["avatars"]) == 1 for node in (await cluster.nodes()).values())
    await cluster.all_ready()
    sessions = [await cluster.open("bob") for _ in range(SESSIONS)]
    assert len({session["url"].rpartition("/v1/")[0] for session in sessions}) == 1
    sessions.append(await cluster.open("bob"))  # that node is full
    assert len({session["url"].rpartition("/v1/")[0] for session in sessions}) == 2
    await cluster.close(*sessions)
    async with cluster.http.post("/v1/sessions", json={"avatar": "carl"}, headers=bearer(KEY)) as reply:
        assert "anna, bob" in await problem(reply, 404, "unknown-avatar")


async def test_a_full_cluster_refuses_and_tells_the_autoscaler(cluster, problem):
    await cluster.all_ready()
    sessions = [await cluster.open() for _ in range(NODES * SESSIONS)]
    async with cluster.http.post("/v1/sessions", json={"avatar": "anna"}, headers=bearer(KEY)) as reply:
        assert "all 3 nodes" in await problem(reply, 503, "capacity")
        assert int(reply.headers["Retry-After"]) > 0
    wanted = json.loads(_internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL))
    assert wanted == [{"CPU": 1.0}] * (NODES + 1)
    async with cluster.http.get("/capacity", headers=bearer(KEY)) as reply:
        capacity = await reply.json()
    assert (capacity["sessions"], capacity["available"]) == (NODES * SESSIONS, 0)
    await cluster.close(*sessions)


async def test_a_dead_or_replaced_director_ends_no_session_and_the_next_one_knows_the_nodes(cluster):
    await cluster.all_ready()
    session = await cluster.open()
    async with open_avatar(cluster.url, "anna", KEY) as avatar:
        await kill(cluster.director)
        await units(avatar, 25)
        await cluster.answers()
        async with cluster.http.get(f"/v1/sessions/{session['id']}") as reply:
            assert await reply.json() == {"url": session["url"]}
        settings, *others = cluster.arguments
        fewer = dataclasses.replace(settings, cluster=dataclasses.replace(settings.cluster, nodes=1))
        cluster.director = start_director(fewer, *others)
        await units(avatar, 25)
        await cluster.answers()
        assert len(await cluster.nodes()) == NODES, "it takes over all nodes that run"
    await cluster.close(session)


@pytest.mark.browser
@pytest.mark.skipif(not PROGRAM, reason="no chromium on PATH")
async def test_a_dead_node_ends_its_sessions_alone_and_the_page_opens_another_one(cluster, browser, problem):
    await cluster.all_ready()
    live = "document.querySelector('#state').textContent === 'Live'"
    async with open_page(browser, f"{cluster.url}/?key={KEY}", OPENED) as page:
        await until(page, live)
        busy = await cluster.watched()
        session = next(
            each for each in [await cluster.open() for _ in range(SESSIONS)] if busy["url"] not in each["url"]
        )
        viewed = await page.evaluate("opened.at(-1)")
        await page.evaluate("document.querySelector('#state').textContent = 'Not yet'")
        await kill(ray.get_actor(busy["node"]))
        await until(page, live)
        assert (await cluster.watched())["url"] != busy["url"]
        lost = await cluster.http.get(f"/v1/sessions/{viewed}")
        assert "open another one" in await problem(lost, 410, "node-lost")
        async with cluster.http.get(f"{session['url']}/publish", headers=bearer(session["token"])) as reply:
            assert reply.status == 200, "sessions of other nodes go on"


async def test_a_node_that_is_drained_ends_with_its_sessions_and_stays_away(cluster):
    session = await cluster.open()
    (node,) = [row["node"] for url, row in (await cluster.nodes()).items() if session["url"].startswith(url)]
    async with cluster.http.get(session["events"], headers=bearer(session["token"])) as events:
        command = [sys.executable, "-m", "streaming", "cluster", "drain", node, "--address", cluster.address]
        drain = await asyncio.create_subprocess_exec(*command)
        text = (await events.content.read()).decode()
        assert await drain.wait() == 0
    assert '"reason": "draining"' in text
    assert node not in [row["node"] for row in await cluster.director.status.remote()]
