"""The director, as other processes start, find and ask it."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Mapping
from pathlib import Path
from typing import TypeVar, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from engine.cluster import NAMESPACE
from engine.errors import ClusterError, PersonaStreamError, SettingError
from streaming.cluster.config import NodeSettings
from streaming.cluster.director import Director
from streaming.cluster.library import LibraryEntry
from streaming.config import ServerConfig
from streaming.server.catalog import Sample
from streaming.server.cors import is_loopback

NAME = "director"
Answer = TypeVar("Answer")


def start_director(
    settings: NodeSettings, config: ServerConfig, entries: tuple[LibraryEntry, ...], samples: Mapping[str, Sample]
) -> ActorHandle[Director]:
    """A new director on this machine, which has the files; an older one ends, and its nodes and sessions do not.

    Raises SettingError where nodes of other machines could not be reached.
    """
    machines = {machine["NodeManagerAddress"] for machine in ray.nodes() if machine["Alive"]}
    if is_loopback(config.host) and len(machines) > 1:
        raise SettingError(
            f"--host {config.host} reaches this machine alone, the cluster has {len(machines)}; "
            "expected --host 0.0.0.0, with a key"
        )
    with contextlib.suppress(ClusterError):
        ray.kill(find_director())
    here = NodeAffinitySchedulingStrategy(this_machine(), soft=False)
    director = (
        ray.remote(Director)
        .options(
            name=NAME,
            namespace=NAMESPACE,
            lifetime="detached",
            max_restarts=-1,
            num_cpus=0,
            scheduling_strategy=here,
        )
        .remote(settings, config, entries, samples)
    )
    return cast(ActorHandle[Director], director)


def this_machine() -> str:
    """Ray's id of the machine of this process."""
    return str(ray.get_runtime_context().get_node_id())


def entries(avatars: Mapping[str, Path], shared: Path | None) -> tuple[LibraryEntry, ...]:
    """The avatar files as the cluster serves them. Raises AvatarFileError, OutputError."""
    return tuple(LibraryEntry.of(name, path, shared) for name, path in avatars.items())


def find_director() -> ActorHandle[Director]:
    """Raises ClusterError where no cluster runs."""
    try:
        return ray.get_actor(NAME, namespace=NAMESPACE)
    except ValueError as error:
        raise ClusterError("no director runs in this Ray cluster; start it with `personastream cluster`") from error


async def answer(asked: Awaitable[Answer]) -> Answer:
    """What an actor returned. Raises what it raised, and ClusterError where it is gone."""
    try:
        return await asked
    except RayTaskError as error:
        if isinstance(error.cause, PersonaStreamError):
            raise error.cause from None
        raise
    except RayActorError as error:
        raise ClusterError(f"the director is gone ({error}); try again") from error


def kill_all(director: ActorHandle[Director]) -> None:
    """End the director and all nodes at once, unless another director has taken the nodes over."""
    with contextlib.suppress(ClusterError):
        if find_director() != director:
            return
    for name in ray.util.list_named_actors():
        with contextlib.suppress(ValueError):
            ray.kill(ray.get_actor(name))
