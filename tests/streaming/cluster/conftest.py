"""A Ray cluster of three machines on this one, with a director and a node on each."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio
from publishing import free_port
from ray_cluster import KEY, NODES, SESSIONS, RunningCluster

from engine.config import ComputeConfig, SessionConfig
from streaming.cluster.config import ClusterConfig, NodeSettings
from streaming.config import ServerConfig, VoicesConfig
from streaming.server.auth import Secrets

MACHINE = {"num_cpus": 1, "object_store_memory": 100 << 20}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def cluster(avatar_path, tmp_path_factory) -> AsyncIterator[RunningCluster]:
    from ray.cluster_utils import Cluster

    from engine.cluster import joined
    from streaming.cluster import connection

    folder = tmp_path_factory.mktemp("cluster")
    environment = pytest.MonkeyPatch()
    environment.setenv("XDG_CACHE_HOME", str(folder / "cache"))  # for the nodes, which inherit that of their machine
    machines = Cluster()
    try:
        machines.add_node(**MACHINE, include_dashboard=False)
        with joined(machines.address, start=False):
            avatars = {name: folder / f"{name}.avatar" for name in ("anna", "bob")}
            for path in avatars.values():
                shutil.copyfile(avatar_path, path)
            server = ServerConfig(port=0, max_sessions=SESSIONS, max_load=1e9, sessions_per_minute=0)
            public = dataclasses.replace(server, port=free_port())
            settings = NodeSettings(
                server=server,
                cluster=ClusterConfig(node_cpus=1),
                compute=ComputeConfig(device="cpu", quality="fast"),
                session=SessionConfig(),
                voices=VoicesConfig(),
                secrets=Secrets((KEY,)),
            )
            arguments = (settings, public, connection.entries(avatars, None), {})
            director = connection.start_director(*arguments)
            try:
                for _ in range(NODES - 1):  # while the first node starts
                    machines.add_node(**MACHINE)
                environment.undo()
                url = await connection.answer(director.url.remote())
                async with aiohttp.ClientSession(url) as http:
                    running = RunningCluster(machines.address, arguments, director, http, url)
                    await running.all_ready()
                    yield running
            finally:
                connection.kill_all()
    finally:
        environment.undo()
        machines.shutdown()
