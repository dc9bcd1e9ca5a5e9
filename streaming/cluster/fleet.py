"""Fleet: the nodes of a cluster; starts them, follows them, places sessions on them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from dataclasses import dataclass
from typing import Any, cast

import ray
from ray.actor import ActorHandle
from ray.autoscaler.sdk import request_resources
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from engine.cluster import NAMESPACE
from engine.errors import CapacityError, ClusterError, PersonaStreamError, UnknownAvatarError
from streaming.cluster.config import NodeSettings
from streaming.cluster.library import AvatarSource, Library
from streaming.cluster.node import Node
from streaming.cluster.placement import NodeReport, in_order
from streaming.errors import QuotaError

log = logging.getLogger(__name__)

POLL_S = 0.5  # between two reports of a node
STALE_S = 3.0  # a node whose report is older gets no session
RETRY_S = 5.0  # before a node that failed to start is started again
OPEN_S = 30.0  # for a session, and before it the avatar


@dataclass(frozen=True)
class Place:
    """Where one node may run: a machine without a GPU, or one GPU of a machine."""

    machine: str  # Ray's node id
    index: int
    bundle: tuple[tuple[str, float], ...]  # of Ray's resources: what another place like this one takes

    @property
    def name(self) -> str:
        return f"{self.machine[-8:]}-{self.index}"


@dataclass
class Member:
    """A node, as the fleet knows it."""

    place: Place
    actor: ActorHandle[Node]
    used_s: float  # loop time when it last had a session
    report: NodeReport | None = None
    at_s: float = 0.0  # loop time of the report
    opening: int = 0  # sessions that are being placed on it

    def current(self, now_s: float) -> NodeReport | None:
        """The report, less the room that is being taken; None where it is too old."""
        if self.report is None or now_s - self.at_s > STALE_S:
            return None
        return dataclasses.replace(self.report, room=self.report.room - self.opening)


class Fleet:
    """The nodes by place. `run` keeps a node at every place, or at as many as are needed."""

    def __init__(self, settings: NodeSettings, library: Library):
        self.opened = self.refused = 0
        self._settings, self._library = settings, library
        self._members: dict[Place, Member] = {}
        self._drained: set[Place] = set()
        self._wanted = settings.cluster.nodes  # None: all places
        self._known = asyncio.Event()

    @property
    def reports(self) -> dict[str, NodeReport]:
        """Of the nodes that answer, by name."""
        now_s = asyncio.get_running_loop().time()
        current = {member.place.name: member.current(now_s) for member in self._members.values()}
        return {name: report for name, report in current.items() if report is not None}

    @property
    def starting(self) -> list[str]:
        """Names of the nodes that do not answer, or not yet."""
        answering = self.reports
        return [place.name for place in self._members if place.name not in answering]

    async def run(self) -> None:
        running = set(await asyncio.to_thread(ray.util.list_named_actors))  # nodes of an earlier director
        async with asyncio.TaskGroup() as tasks:
            while True:
                places = _places(await asyncio.to_thread(ray.nodes))
                for place in self._members.keys() - places.keys():
                    log.warning("node.lost node=%s", place.name)
                    ray.kill(self._members.pop(place).actor)
                for place in sorted(places, key=lambda place: place.name not in running):
                    needed = self._wanted is None or len(self._members) < self._wanted
                    new = place not in self._members and place not in self._drained
                    if new and (needed or place.name in running):
                        self._members[place] = member = self._start(place)
                        tasks.create_task(self._follow(member))
                running.clear()
                self._known.set()
                await asyncio.sleep(POLL_S)

    async def known(self) -> None:
        """Wait until the nodes that run already have reported: a restarted director must not call them lost."""
        await self._known.wait()
        deadline_s = asyncio.get_running_loop().time() + STALE_S
        while self.starting and asyncio.get_running_loop().time() < deadline_s:
            await asyncio.sleep(POLL_S / 10)

    async def open(self, avatar: str, client: str, origin: str | None) -> tuple[NodeReport, dict[str, Any]]:
        """Open a session on the best node: its report, and the session's answer without addresses.

        Raises UnknownAvatarError, CapacityError, QuotaError, AvatarFileError.
        """
        if avatar not in self._library.entries:
            raise UnknownAvatarError(f"no avatar {avatar!r}; this cluster has {', '.join(self._library.entries)}")
        source = self._library.source(avatar)
        by_run = {member.report.run: member for member in self._members.values() if member.report}
        for report in in_order(self.reports.values(), source.key):
            member = by_run[report.run]
            member.opening += 1
            try:
                async with asyncio.timeout(OPEN_S):
                    session, report = await member.actor.open.remote(source, client, origin)
            except RayTaskError as error:
                if isinstance(error.cause, CapacityError) and not isinstance(error.cause, QuotaError):
                    continue  # it has filled up since its report
                raise error.cause from None
            except (RayActorError, TimeoutError):
                member.report = None
                continue
            finally:
                member.opening -= 1
            self._heard(member, report)
            self.opened += 1
            return report, session
        self.refused += 1
        self._grow()
        raise CapacityError(
            f"all {len(self.reports)} nodes of this cluster are full, and {len(self.starting)} are starting; try later"
        )

    def forget(self, run: str) -> None:
        """Place no session on the node of this run until its next report: it does not answer at its address."""
        for member in self._members.values():
            if member.report is not None and member.report.run == run:
                member.report = None

    async def drain(self, name: str) -> None:
        """End a node, or all of a machine, after their sessions, and start none there any more. Raises ClusterError."""
        members = [member for member in self._members.values() if name in (member.place.name, member.place.machine)]
        if not members:
            names = ", ".join(place.name for place in self._members)
            raise ClusterError(f"no node {name!r}; the cluster has {names or 'none'}")
        self._drained.update(member.place for member in members)
        async with asyncio.TaskGroup() as tasks:
            for member in members:
                tasks.create_task(self._end(member))

    async def end(self) -> None:
        """End all nodes, after their sessions."""
        self._wanted = 0
        async with asyncio.TaskGroup() as tasks:
            for member in list(self._members.values()):
                tasks.create_task(self._end(member))

    def _start(self, place: Place) -> Member:
        """The node at this place; the one that runs there already, if there is one."""
        cluster = self._settings.cluster
        port = cluster.node_port + place.index if cluster.node_port else 0
        actor = (
            ray.remote(Node)
            .options(
                name=place.name,
                namespace=NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                max_restarts=-1,
                num_cpus=min(cluster.node_cpus, dict(place.bundle).get("CPU", cluster.node_cpus)),
                num_gpus=dict(place.bundle).get("GPU", 0),
                scheduling_strategy=NodeAffinitySchedulingStrategy(place.machine, soft=False),
            )
            .remote(self._settings, port)
        )
        log.info("node.start node=%s", place.name)
        return Member(place, cast(ActorHandle[Node], actor), asyncio.get_running_loop().time())

    def _first(self) -> AvatarSource:
        return self._library.source(next(iter(self._library.entries)))

    async def _follow(self, member: Member) -> None:
        """Ask the node for its state until it ends."""
        while self._members.get(member.place) is member:
            try:
                async with asyncio.timeout(STALE_S):
                    report = await member.actor.report.remote()
                    if report is None:
                        await member.actor.start.remote(self._first())
                    else:
                        self._heard(member, report)
                await self._end_if_unused(member)
            except TimeoutError:
                pass
            except ActorDiedError:  # Ray does not start it again
                if self._members.get(member.place) is member:
                    del self._members[member.place]
            except RayActorError:  # Ray starts it again
                member.report = None
            except (RayTaskError, PersonaStreamError) as error:  # its engine did not start, or the avatar is gone
                cause = error.cause if isinstance(error, RayTaskError) else error
                log.error("node.failed node=%s error=%s", member.place.name, cause)
                await asyncio.sleep(RETRY_S)
                ray.kill(member.actor, no_restart=False)
            await asyncio.sleep(POLL_S)

    def _heard(self, member: Member, report: NodeReport) -> None:
        now_s = asyncio.get_running_loop().time()
        if member.report is None:
            log.info("node.ready node=%s url=%s device=%s", member.place.name, report.url, report.device)
        member.report, member.at_s = report, now_s
        if report.sessions or member.opening:
            member.used_s = now_s

    async def _end_if_unused(self, member: Member) -> None:
        least, unused_s = self._settings.cluster.nodes, asyncio.get_running_loop().time() - member.used_s
        if least is not None and len(self._members) > least and unused_s > self._settings.cluster.idle_node_s:
            self._wanted = len(self._members) - 1
            await self._end(member)
            self._request()

    async def _end(self, member: Member) -> None:
        log.info("node.drain node=%s", member.place.name)
        with contextlib.suppress(RayActorError):  # it exits
            await member.actor.drain.remote()
        ray.kill(member.actor)  # Ray would start it again if it crashed instead
        self._members.pop(member.place, None)

    def _grow(self) -> None:
        """Ask for one more node: at a free place, or on a machine that Ray's autoscaler starts."""
        if self._wanted is not None:
            self._wanted = len(self._members) + 1
        self._request(more=1)

    def _request(self, more: int = 0) -> None:
        bundles = [dict(place.bundle) for place in self._members]
        if bundles:
            request_resources(bundles=bundles + bundles[-1:] * more)


def _places(machines: list[dict[str, Any]]) -> dict[Place, None]:
    """The places of the machines that live, in order. A machine's bundle is all of its CPUs, so that the autoscaler
    starts another machine for it."""
    places: dict[Place, None] = {}
    for machine in machines:
        if machine["Alive"]:
            gpus = int(machine["Resources"].get("GPU", 0))
            bundle = {"GPU": 1.0} if gpus else {"CPU": machine["Resources"].get("CPU", 0.0)}
            for index in range(gpus or int(bundle["CPU"] > 0)):
                places[Place(machine["NodeID"], index, tuple(bundle.items()))] = None
    return places
