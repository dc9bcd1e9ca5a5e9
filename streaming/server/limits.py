"""How often one address may open a session."""

from __future__ import annotations

from aiohttp import web

from streaming.errors import QuotaError

MOST_ADDRESSES = 4096  # remembered; beyond, those that have their whole share again are forgotten


class SessionRate:
    """A bucket for each address that holds `per_minute` sessions and fills again in a minute; 0: no limit."""

    def __init__(self, per_minute: int):
        self._per_minute = per_minute
        self._levels: dict[str, tuple[float, float]] = {}  # what is left, and when that was

    def take(self, address: str, now: float) -> None:
        """One session more; QuotaError says when there is room for it."""
        if not self._per_minute:
            return
        left = self._left(address, now)
        if left < 1:
            wait_s = int((1 - left) * 60 / self._per_minute) + 1
            raise QuotaError(
                f"{address} opened more than {self._per_minute} sessions in a minute; try again in {wait_s} s", wait_s
            )
        if len(self._levels) >= MOST_ADDRESSES:
            full = [known for known in self._levels if self._left(known, now) >= self._per_minute]
            for known in full or list(self._levels)[: MOST_ADDRESSES // 2]:
                del self._levels[known]
        self._levels[address] = (left - 1, now)

    def _left(self, address: str, now: float) -> float:
        left, when = self._levels.get(address, (float(self._per_minute), now))
        return min(self._per_minute, left + (now - when) * self._per_minute / 60)


def client_address(request: web.Request, proxies: int) -> str:
    """Where the request comes from, seen through that many proxies of ours, each of which appends the address that it
    was called from to X-Forwarded-For. What stands before those was written by the client and counts for nothing."""
    hops = [hop.strip() for line in request.headers.getall("X-Forwarded-For", []) for hop in line.split(",")]
    if proxies and len(hops) >= proxies:
        return hops[-proxies][:64]
    return request.remote or "unknown"
