"""Threads, file handles and memory of a server over many sessions that are opened and closed.

Each cycle opens a session, watches it over WebRTC, makes it speak, and closes it. The server runs in a separate
process: the memory of this one does not count.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import aiohttp
import numpy as np
import tyro
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from benchmarks import command
from benchmarks.serving import serving

CYCLE_S = 30.0
READ_EVERY_CYCLES = 8


@dataclass(frozen=True)
class Usage:
    """Usage of a process, as Linux counts it in /proc."""

    threads: int
    handles: int
    memory_mb: float

    @staticmethod
    def of(pid: int) -> Usage:
        status = Path(f"/proc/{pid}/status").read_text()
        threads, memory_kb = (
            int(re.search(rf"^{name}:\s+(\d+)", status, re.MULTILINE)[1]) for name in ("Threads", "VmRSS")
        )
        return Usage(threads, len(list(Path(f"/proc/{pid}/fd").iterdir())), memory_kb / 1024)


@dataclass(frozen=True, kw_only=True)
class Soak:
    """Open and close many sessions on a server, and measure its threads, file handles and memory."""

    avatar: Annotated[Path, tyro.conf.Positional]
    cycles: int = 200
    warm_up: int = 40
    """Cycles before the first reading, in which pools and caches fill."""

    def run(self) -> None:
        readings, seconds = asyncio.run(soak(self.avatar, self.warm_up, self.cycles))
        memory_mb = [usage.memory_mb for usage in readings]
        slope_mb = np.polyfit(np.linspace(0, self.cycles, len(readings)), memory_mb, 1)[0]
        figures = {
            "cycles": self.cycles,
            "seconds_per_cycle": round(seconds / self.cycles, 3),
            "threads": [readings[0].threads, readings[-1].threads],
            "file_handles": [readings[0].handles, readings[-1].handles],
            "memory_mb": [round(value) for value in memory_mb],
            "memory_mb_per_100_cycles": round(100 * slope_mb, 2),
        }
        print(json.dumps(figures))


async def soak(avatar: Path, warm_up: int, cycles: int) -> tuple[list[Usage], float]:
    """The server's usage before, every READ_EVERY_CYCLES and after the sessions, and the duration of all in seconds."""
    async with (
        serving(avatar, "--sessions-per-minute", "0") as server,
        aiohttp.ClientSession(server.url) as http,
    ):
        for _ in range(warm_up):
            await converse(http, avatar.stem)
        readings, began_s = [await settled(server.pid)], time.monotonic()
        for cycle in range(1, cycles + 1):
            await converse(http, avatar.stem)
            if cycle % READ_EVERY_CYCLES == 0:
                readings.append(await settled(server.pid))
        return readings, time.monotonic() - began_s


async def converse(http: aiohttp.ClientSession, avatar: str) -> None:
    """Open one session, watch it, make it speak, and close it."""
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
    """Usage after the last session's connections are closed."""
    await asyncio.sleep(0.5)
    return Usage.of(pid)


if __name__ == "__main__":
    command.run(Soak, "python -m benchmarks.soak")
