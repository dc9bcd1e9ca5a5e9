"""The settings of a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.config import ComputeConfig, SessionConfig
from engine.errors import SettingError
from streaming.config import ServerConfig, VoicesConfig
from streaming.server.auth import Secrets

MAX_PORT = 65_535


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

    def __post_init__(self) -> None:
        try:
            self.node_url.format(ip="127.0.0.1", host="localhost", port=1)
        except (KeyError, ValueError, IndexError, AttributeError) as error:
            raise SettingError(
                f"--node-url {self.node_url} ({error!r}); expected {{ip}}, {{host}}, {{port}}"
            ) from error
        if not 0 <= self.node_port <= MAX_PORT:
            raise SettingError(f"--node-port {self.node_port}; expected at most {MAX_PORT}, or 0 for any free port")
        least = {"nodes": 0 if self.nodes is None else self.nodes, "node-cpus": self.node_cpus}
        for name, value in (least | {"idle-node-s": self.idle_node_s}).items():
            if not value >= 0:  # nor NaN
                raise SettingError(f"--{name} {value}; expected at least 0")


@dataclass(frozen=True, kw_only=True)
class NodeSettings:
    """What every node of a cluster has in common."""

    server: ServerConfig
    cluster: ClusterConfig
    compute: ComputeConfig
    session: SessionConfig
    voices: VoicesConfig
    secrets: Secrets
