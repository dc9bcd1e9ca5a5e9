"""The command `personastream mic`."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from silent_machine import needs_silence

from benchmarks.chromium import PROGRAM, console, open_page, until
from engine.media import PlaybackFinished
from streaming.__main__ import main
from streaming.commands.mic import speak_from
from streaming.local.sound_devices import RawSource

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@pytest.mark.asyncio(loop_scope="session")
async def test_a_source_is_spoken_to_its_last_sample(engine, raw_speech):
    path, rate = raw_speech
    session = engine.open_session("speaker")
    units = session.subscribe(1000, events_only=True)
    async with asyncio.timeout(60):
        await speak_from(RawSource(str(path), rate), session)
    await session.close()
    ends = [event async for unit in units for event in unit.events]
    assert ends[-1].position_samples == len(path.read_bytes()) // 2 and not ends[-1].interrupted
    while engine.sessions:
        await asyncio.sleep(0.01)


class InterruptedSource:
    """Half a second of sound, with a barge-in in its middle and time for it to be reported."""

    sample_rate_hz, channels = 16_000, 1

    def __init__(self, session):
        self._session = session

    async def blocks(self):
        yield bytes(2 * 4_000)
        self._session.cancel()
        await asyncio.sleep(0.2)
        yield bytes(2 * 4_000)


@pytest.mark.asyncio(loop_scope="session")
async def test_sound_after_a_barge_in_is_spoken_to_its_end(engine):
    session = engine.open_session("speaker")
    units = session.subscribe(events_only=True)
    async with asyncio.timeout(60):
        await speak_from(InterruptedSource(session), session)
    await session.close()
    ends = [event async for unit in units for event in unit.events if isinstance(event, PlaybackFinished)]
    assert [end.interrupted for end in ends] == [True, False] and ends[1].position_samples == 4_000
    while engine.sessions:
        await asyncio.sleep(0.01)


@pytest.mark.slow
def test_the_command_speaks_from_a_pipe_and_shows_the_avatar_on_a_page(avatar_path, raw_speech):
    path, rate = raw_speech
    command = [sys.executable, "-m", "streaming", "mic", str(avatar_path), "--source", "-", "--rate-hz", str(rate)]
    with subprocess.Popen(
        [*command, "--port", "0"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=False
    ) as mic:
        try:
            url = mic.stdout.readline().split()[-1].decode()
            assert "/?session=" in url and "&token=" in url
            with urllib.request.urlopen(url, timeout=60) as page:
                assert b"<persona-stream" in page.read()
            mic.stdin.write(path.read_bytes())
            mic.stdin.close()
            assert mic.wait(timeout=60) == 0  # the source has ended and all of it was played
        finally:
            if mic.poll() is None:
                mic.kill()


@needs_silence
def test_the_command_without_a_microphone_prints_one_line_and_exits_with_2(avatar_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["mic", str(avatar_path), "--port", "0"])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no microphone" in line


@pytest.mark.browser
@pytest.mark.skipif(not PROGRAM, reason="no chromium on PATH")
@pytest.mark.asyncio(loop_scope="session")
async def test_the_page_joins_a_session_that_a_program_has_opened_and_leaves_it_open(serving, engine, browser):
    async with serving() as client:
        session = await client.open_session()
        address = f"{client.server.url}/?session={session['id']}&token={session['token']}"
        async with open_page(browser, address) as page, asyncio.timeout(120):
            await until(page, "avatar.shadowRoot.querySelector('video').videoWidth > 0")
            (live_session,) = client.server.live_sessions
            assert live_session.session.id == session["id"] and len(live_session.viewers) == 1
            await page.evaluate("document.getElementById('stop').click()")
            while live_session.viewers:
                await asyncio.sleep(0.1)
            assert not await console(page)
        assert session["id"] in engine.sessions


def test_the_device_that_computes_is_chosen_beside_the_microphone(avatar_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["mic", str(avatar_path), "--source", "/dev/null", "--compute.device", "gpu"])
    assert ended.value.code == 2 and "--device gpu; expected auto, cpu, cuda or cuda:N" in capsys.readouterr().err
