"""The rate at which one address may open sessions."""

from __future__ import annotations

from aiohttp import web

from streaming.errors import QuotaError

MAX_ADDRESSES = 4096  # in memory; beyond it, addresses with a full bucket are removed first


class SessionRate:
    """A token bucket for each address: it holds `per_minute` sessions and refills in a minute. 0: no limit."""

    def __init__(self, per_minute: int):
        self._per_minute = per_minute
        self._levels: dict[str, tuple[float, float]] = {}  # sessions left, and at which time

    def take(self, address: str, now: float) -> None:
        """Count one more session at time `now`, s. Raises QuotaError, which says when to try again."""
        if not self._per_minute:
            return
        left = self._left(address, now)
        if left < 1:
            wait_s = int((1 - left) * 60 / self._per_minute) + 1
            raise QuotaError(
                f"{address} opened more than {self._per_minute} sessions in a minute; try again in {wait_s} s", wait_s
            )
        if len(self._levels) >= MAX_ADDRESSES:
            full = [other for other in self._levels if self._left(other, now) >= self._per_minute]
            for other in full or list(self._levels)[: MAX_ADDRESSES // 2]:
                del self._levels[other]
        self._levels[address] = (left - 1, now)

    def _left(self, address: str, now: float) -> float:
        left, at_s = self._levels.get(address, (float(self._per_minute), now))
        return min(self._per_minute, left + (now - at_s) * self._per_minute / 60)


def client_address(request: web.Request, proxies: int) -> str:
    """The client's address, behind this number of our proxies. Each appends its caller's address to X-Forwarded-For;
    earlier entries come from the client and are not trusted."""
    hops = [hop.strip() for line in request.headers.getall("X-Forwarded-For", []) for hop in line.split(",")]
    if proxies and len(hops) >= proxies:
        return hops[-proxies][:64]
    return request.remote or "unknown"
