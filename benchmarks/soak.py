"""What a server keeps of sessions that are closed: threads, file handles and memory over many of them.

Each cycle opens a session, watches it over WebRTC, has it speak, and closes all of that again. The server is a process
of its own, so that what this end keeps does not count.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import aiohttp
import numpy as np
import tyro
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription

START_S = 120.0
CYCLE_S = 30.0
LOOK = 8


@dataclass(frozen=True)
class Usage:
    """Of a process, as the kernel counts it."""

    threads: int
    handles: int
    memory_mb: float

    @staticmethod
    def of(pid: int) -> Usage:
        status = Path(f"/proc/{pid}/status").read_text()
        found = {name: int(re.search(rf"^{name}:\s+(\d+)", status, re.MULTILINE)[1]) for name in ("Threads", "VmRSS")}
        return Usage(found["Threads"], len(list(Path(f"/proc/{pid}/fd").iterdir())), found["VmRSS"] / 1024)


@dataclass(frozen=True, kw_only=True)
class Soak:
    """Open and close sessions on a server of its own, and say what it keeps of them."""

    avatar: Annotated[Path, tyro.conf.Positional]
    cycles: int = 200
    warm_up: int = 40
    """Cycles before the first look: pools fill, caches and encoders settle."""

    def run(self) -> int:
        seen, seconds = asyncio.run(soak(self.avatar, self.warm_up, self.cycles))
        memory_mb = [usage.memory_mb for usage in seen]
        slope_mb = np.polyfit(np.linspace(0, self.cycles, len(seen)), memory_mb, 1)[0]
        figures = {
            "cycles": self.cycles,
            "seconds_per_cycle": round(seconds / self.cycles, 3),
            "threads": [seen[0].threads, seen[-1].threads],
            "file_handles": [seen[0].handles, seen[-1].handles],
            "memory_mb": [round(value) for value in memory_mb],
            "memory_mb_per_100_cycles": round(100 * slope_mb, 2),
        }
        print(json.dumps(figures))
        return 0


async def soak(avatar: Path, warm_up: int, cycles: int) -> tuple[list[Usage], float]:
    """The server's usage before, between (every LOOK cycles) and after the sessions, and the seconds that all took."""
    async with serve(avatar) as (url, pid), aiohttp.ClientSession(url) as http:
        for _ in range(warm_up):
            await converse(http, avatar.stem)
        seen, began_s = [await settled(pid)], time.monotonic()
        for cycle in range(1, cycles + 1):
            await converse(http, avatar.stem)
            if cycle % LOOK == 0:
                seen.append(await settled(pid))
        return seen, time.monotonic() - began_s


@contextlib.asynccontextmanager
async def serve(avatar: Path) -> AsyncIterator[tuple[str, int]]:
    """A server process: its address and process id."""
    command = (sys.executable, "-m", "streaming", "serve", str(avatar), "--port", "0", "--sessions-per-minute", "0")
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout
    try:
        async with asyncio.timeout(START_S):
            while not (found := re.search(rb"http://[\w.:]+", await process.stdout.readline())):
                if process.stdout.at_eof():
                    raise SystemExit("the server ended before it listened; `personastream serve` says why")
        yield found[0].decode(), process.pid
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def converse(http: aiohttp.ClientSession, avatar: str) -> None:
    """One session from its opening to its end, seen and heard."""
    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    tracks: dict[str, object] = {}
    peer.on("track", lambda track: tracks.setdefault(track.kind, track))
    for kind in ("video", "audio"):
        peer.addTransceiver(kind, direction="recvonly")
    async with asyncio.timeout(CYCLE_S):
        session = await (await http.post("/v1/sessions", json={"avatar": avatar})).json()
        headers = {"Authorization": f"Bearer {session['token']}"}
        await peer.setLocalDescription(await peer.createOffer())
        sdp = {"Content-Type": "application/sdp"}
        async with http.post(session["whep"], data=peer.localDescription.sdp, headers=headers | sdp) as reply:
            await peer.setRemoteDescription(RTCSessionDescription(await reply.text(), "answer"))
        async with http.ws_connect(session["speech"], headers=headers) as speech:
            await speech.send_json({"type": "speech.text", "id": "1", "text": "Yes."})
            while (await speech.receive_json())["type"] != "playback.started":
                pass
            for track in tracks.values():
                await track.recv()
        await peer.close()
        async with http.delete(f"/v1/sessions/{session['id']}", headers=headers) as reply:
            assert reply.status == 204


async def settled(pid: int) -> Usage:
    """Usage when the last session's ends are gone."""
    await asyncio.sleep(0.5)
    return Usage.of(pid)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(tyro.cli(Soak, prog="python -m benchmarks.soak").run())
