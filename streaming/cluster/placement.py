"""The choice of a node for a session, from what the nodes report. Pure: no Ray, no network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class NodeReport:
    """A node's state. run: names this run of its process: sessions of an earlier run ended with it. avatars: keys of
    loaded ones."""

    run: str
    url: str
    sessions: int
    max_sessions: int
    room: int
    viewers: int
    max_viewers: int
    avatars: frozenset[str]
    voices: tuple[str, ...]
    draining: bool
    device: str


def in_order(reports: Iterable[NodeReport], avatar: str) -> list[NodeReport]:
    """The nodes to ask for a session, best first: those that have loaded the avatar, then those with the most room."""
    open_ones = [report for report in reports if report.room > 0 and not report.draining]
    return sorted(open_ones, key=lambda report: (avatar not in report.avatars, -report.room))


def run_of(session_id: str) -> str:
    """The run of the node that opened a session."""
    return session_id.partition("-")[0]
