"""The settings of a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.config import ComputeConfig, SessionConfig
from streaming.config import ServerConfig, VoicesConfig
from streaming.server.auth import Secrets


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Where nodes run, and how clients reach them."""

    nodes: int | None = None  # at least so many, of which unused ones never end; by default one for each machine or GPU
    node_cpus: float = 2.0  # CPUs that a node reserves; more of the machine are free for tasks
    node_port: int = 0  # the port of a machine's first node, the next GPU's is one higher; 0: any free port
    node_url: str = "http://{ip}:{port}"
    """The address at which clients reach a node, made from its {ip}, {host} name and {port}: with a TLS proxy on each
    machine, https://{host}.avatars.example"""
    shared: Path | None = None  # a folder that all machines have, for avatars; by default Ray's object store has them
    idle_node_s: float = 600.0  # with --nodes: a node beyond them that has no session for so long ends


@dataclass(frozen=True, kw_only=True)
class NodeSettings:
    """What every node of a cluster has in common."""

    server: ServerConfig
    cluster: ClusterConfig
    compute: ComputeConfig
    session: SessionConfig
    voices: VoicesConfig
    secrets: Secrets
