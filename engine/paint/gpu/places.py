"""Consecutive places of an array that grows: given out to avatars, and taken back when they go."""

from __future__ import annotations


class Places:
    """count: the places that the array must have."""

    def __init__(self) -> None:
        self.count = 0
        self._free: list[range] = []  # in order, none touching another

    def take(self, count: int) -> int:
        """The first of `count` consecutive places, which are free."""
        for i, free in enumerate(self._free):
            if len(free) >= count:
                self._free[i : i + 1] = [free[count:]] if len(free) > count else []
                return free.start
        start, self.count = self.count, self.count + count
        return start

    def give_back(self, start: int, count: int) -> None:
        """Places that `take` returned are free again."""
        merged: list[range] = []
        for free in sorted([*self._free, range(start, start + count)], key=lambda free: free.start):
            if merged and merged[-1].stop == free.start:
                merged[-1] = range(merged[-1].start, free.stop)
            else:
                merged.append(free)
        self._free = merged
