"""Viewers behind bad networks: lost and late datagrams, and paths that break."""

from __future__ import annotations

import asyncio

import aioice.ice
import numpy as np
import pytest
from bad_link import BadLink
from whep_client import follow_each_other, frames, gone, viewer

from streaming.speech.protocol import Finished, SpeechText, Started

pytestmark = pytest.mark.asyncio(loop_scope="session")

NTP_S = 1 << 32
RATES_HZ = {"video": 90_000, "audio": 48_000}


@pytest.mark.slow
async def test_a_viewer_behind_loss_delay_and_jitter_sees_and_hears_on(serving):
    with BadLink(loss=0.03, delay_s=0.04, jitter_s=0.02) as link:
        async with serving() as client:
            session = await client.open_session()
            async with viewer(client, session, link=link) as whep, client.speech(session) as speech:
                await frames(whep.tracks["video"], 10)
                await speech.send(SpeechText("greeting", "Hello, can you hear me?"))
                await speech.receive_until(Started)
                pictures, sound = await asyncio.gather(
                    frames(whep.tracks["video"], 75), frames(whep.tracks["audio"], 150)
                )
    assert link.lost > 20
    heard = np.concatenate([piece.to_ndarray().ravel() for piece in sound])
    assert np.abs(heard.astype(int)).max() > 3_000
    assert follow_each_other(pictures, 3_600), "lost packets are sent again, or pictures resume at a key frame"


@pytest.mark.slow
async def test_a_bad_link_of_one_viewer_is_no_matter_of_the_other(serving):
    with BadLink(loss=0.3, delay_s=0.1) as link:
        async with serving() as client:
            session = await client.open_session()
            async with viewer(client, session) as good, viewer(client, session, link=link):
                await frames(good.tracks["video"], 10)
                pictures = await frames(good.tracks["video"], 75)
    assert link.lost > 0 and follow_each_other(pictures, 3_600)


@pytest.mark.slow
async def test_a_path_that_was_gone_for_a_while_comes_back(serving):
    with BadLink() as link:
        async with serving() as client, viewer(client, await client.open_session(), link=link) as whep:
            await frames(whep.tracks["video"], 10)
            link.up = False
            await asyncio.sleep(2)
            link.up = True
            last = (await frames(whep.tracks["video"], 1))[0].pts
            pictures = await frames(whep.tracks["video"], 50)
            assert pictures[-1].pts - last >= 50 * 3_600
            assert follow_each_other(pictures[-25:], 3_600)


@pytest.mark.slow
async def test_a_viewer_whose_path_is_gone_for_good_is_given_up_and_speech_goes_on(serving, monkeypatch):
    monkeypatch.setattr(aioice.ice, "CONSENT_INTERVAL", 0.5)  # 5 s, six times
    with BadLink() as link:
        async with serving() as client:
            session = await client.open_session()
            async with viewer(client, session, link=link) as whep, client.speech(session) as speech:
                await frames(whep.tracks["video"], 10)
                link.up = False
                await speech.send(SpeechText("greeting", "Nobody sees me."))
                assert not (await speech.receive_until(Finished)).interrupted
                await gone(client.server, timeout_s=60)


@pytest.mark.slow
async def test_reports_of_sound_and_picture_lie_on_one_line_however_late_packets_leave(serving):
    """A receiver aligns both by them (RFC 3550, 6.4.1): an error in them is heard as a voice out of sync."""
    async with serving() as client, viewer(client, await client.open_session()) as whep:

        async def hold_up():  # as a busy machine does: packets leave up to 30 ms late
            while True:
                await asyncio.sleep(0.05)
                until_s = asyncio.get_running_loop().time() + 0.03
                while asyncio.get_running_loop().time() < until_s:
                    pass

        async with asyncio.TaskGroup() as tasks:
            holding = tasks.create_task(hold_up())
            await asyncio.gather(frames(whep.tracks["video"], 125), frames(whep.tracks["audio"], 250))
            holding.cancel()
    for kind, reports in whep.reports.items():
        assert len(reports) >= 3
        rtp, ntp = (np.array(column, dtype=object) for column in zip(*reports, strict=True))
        off_s = (ntp - ntp[0]) / NTP_S - ((rtp - rtp[0]) % (1 << 32)) / RATES_HZ[kind]
        assert np.abs(off_s.astype(float)).max() < 0.001, kind
