"""The status of a destination, as its sink reports it and clients read it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import urlsplit


class State(Enum):
    CONNECTING = "connecting"
    LIVE = "live"
    RETRYING = "retrying"
    ENDED = "ended"


@dataclass
class Status:
    """The present state of a destination. `url` has no secrets; `place` is the path of the recording, if it is one."""

    url: str
    state: State = State.CONNECTING
    bytes: int = 0  # accepted by the destination, over all connections
    connections: int = 0  # that went live
    failures: int = 0
    last_error: str | None = None
    place: str | None = None
    dropped_units: int = 0
    _earlier_bytes: int = field(default=0, repr=False)  # of earlier connections

    def live(self, accepted_bytes: int) -> None:
        """The destination has accepted this many bytes of the present connection."""
        self.connections += self.state is not State.LIVE
        self.state = State.LIVE
        self.bytes = self._earlier_bytes + accepted_bytes

    def failed(self, error: Exception) -> None:
        """The present connection ended with this error."""
        self.state = State.RETRYING
        self.failures += 1
        self.last_error = str(error)
        self._earlier_bytes = self.bytes

    def to_json(self) -> dict[str, str | int | None]:
        names = ("url", "bytes", "connections", "failures", "last_error", "place", "dropped_units")
        return {"state": self.state.value} | {name: getattr(self, name) for name in names}


def without_secrets(url: str) -> str:
    """The URL without user, password, query and the last part of an RTMP path, which is the stream key."""
    if "://" not in url:
        return url
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    path = parts.path
    if parts.scheme.lower() in ("rtmp", "rtmps") and path.count("/") > 1:
        path = path.rpartition("/")[0] + "/…"
    return f"{parts.scheme}://{host}{path}"
