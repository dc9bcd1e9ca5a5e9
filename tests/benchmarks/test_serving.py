"""A server that does not come up is told with what it said."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from benchmarks import serving


async def enter(avatar):
    async with serving.serving(avatar):
        raise AssertionError("it listens")


def test_a_server_that_ends_before_it_listens_is_told_with_its_last_words():
    with pytest.raises(serving.ServerEndError, match=r"(?s)exit code 2; expected it to listen .* no such file"):
        asyncio.run(enter(Path("none.avatar")))


def test_a_server_that_does_not_listen_in_time_is_ended_and_told(monkeypatch):
    monkeypatch.setattr(serving, "START_S", 0.05)  # importing torch alone takes longer
    with pytest.raises(serving.ServerEndError, match="expected it to listen within 0.05 s"):
        asyncio.run(enter(Path("none.avatar")))
