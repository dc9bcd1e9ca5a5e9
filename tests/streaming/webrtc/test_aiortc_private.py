"""The check of aiortc's private attributes: the installed version passes, one without them is named at the start."""

from __future__ import annotations

import aioice
import pytest
from aiortc.rtcrtpsender import RTCRtpSender

from engine.errors import DependencyError
from streaming.config import ServerConfig
from streaming.server.app import Server
from streaming.webrtc import aiortc_private

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_the_installed_versions_have_all_attributes():
    await aiortc_private.check()


async def test_a_version_without_an_attribute_is_named_with_the_expected_one_and_the_remedy(monkeypatch):
    monkeypatch.delattr(RTCRtpSender, "_send_keyframe")
    expected = r"aiortc \S+ and aioice \S+ have no RTCRtpSender\._send_keyframe.*expected aiortc 1\.16\.0.*pip install"
    with pytest.raises(DependencyError, match=expected):
        await aiortc_private.check()


async def test_a_version_that_gathers_candidates_with_other_arguments_is_named(monkeypatch):
    monkeypatch.setattr(aioice.Connection, "get_component_candidates", lambda self, component: None)
    with pytest.raises(DependencyError, match=r"Connection\.get_component_candidates\(component, addresses, timeout\)"):
        await aiortc_private.check()


async def test_the_server_does_not_start_with_such_a_version(engine, monkeypatch):
    monkeypatch.delattr(RTCRtpSender, "_send_keyframe")
    with pytest.raises(DependencyError):
        async with Server(engine, ServerConfig(port=0), {}):
            pass
