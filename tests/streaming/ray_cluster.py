"""What the tests of a cluster share."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any

import aiohttp

KEY = "the-key-of-the-cluster"
NODES, SESSIONS = 3, 2  # of each node


@dataclass
class RunningCluster:
    """A cluster and an HTTP client of its director."""

    address: str
    arguments: tuple[Any, ...]  # of its director
    director: Any
    http: aiohttp.ClientSession
    url: str

    async def open(self, avatar: str = "anna") -> dict[str, Any]:
        async with self.http.post("/v1/sessions", json={"avatar": avatar}, headers=bearer(KEY)) as reply:
            assert reply.status == 201, await reply.text()
            return dict(await reply.json())

    async def close(self, *sessions: dict[str, Any]) -> None:
        for session in sessions:
            async with self.http.delete(session["url"], headers=bearer(session["token"])) as reply:
                assert reply.status == 204, await reply.text()

    async def nodes(self) -> dict[str, dict[str, Any]]:
        """The rows of the nodes that are ready, by URL."""
        return {row["url"]: row for row in await self.director.status.remote() if row["state"] == "ready"}

    async def watched(self) -> dict[str, Any]:
        """The row of the node that has a viewer, once there is one."""
        async with asyncio.timeout(60):
            while True:
                for node in (await self.nodes()).values():
                    if node["viewers"]:
                        return node
                await asyncio.sleep(0.1)

    async def answers(self) -> None:
        """Wait until the director answers, which it does once it knows its nodes."""
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    async with self.http.get("/readyz") as reply:
                        assert reply.status == 200
                        return
                await asyncio.sleep(0.1)

    async def all_ready(self, count: int = NODES) -> None:
        async with asyncio.timeout(120):
            while sum(row["room"] for row in (await self.nodes()).values()) < count * SESSIONS:
                await asyncio.sleep(0.1)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}
