"""When the packets of a viewer leave, which is what a receiver aligns sound and picture by at first."""

from __future__ import annotations

import asyncio

import numpy as np
from whep_client import departures

from engine.media import SAMPLES_PER_FRAME
from streaming.publish.broadcast import EncodedUnit
from streaming.publish.encoders import Picture, SoundPacket
from streaming.webrtc.tracks import TRACK_UNITS, TrackPair

OPUS_LOOKAHEAD = 312  # samples at 48 kHz


def encoded(number):
    """A unit as an encode makes it: Opus stamps its packets earlier than the sound that went into them."""
    pts = SAMPLES_PER_FRAME * number
    packets = tuple(SoundPacket(pts - OPUS_LOOKAHEAD + half * SAMPLES_PER_FRAME // 2, b"sound") for half in range(2))
    return EncodedUnit(number, pts, Picture(b"picture", number == 0), packets, True, True)


def test_packets_leave_as_their_time_stamps_say(virtual):
    async def main(loop):
        skews_s, at_once = [], TRACK_UNITS + 1
        settled = at_once + 2
        tracks = TrackPair(skews_s.append)

        async def feed():
            for number in range(20):  # the first ones come late, together
                await asyncio.sleep(max(0.0, 1.0 + 0.04 * max(number, at_once) - loop.time()))
                await tracks.put(encoded(number), picture=True, sound=True)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(feed())
            taken = [tasks.create_task(departures(track, n)) for track, n in ((tracks.picture, 20), (tracks.sound, 40))]
        pictures, sound = (task.result() for task in taken)
        assert np.rint(pictures[:, 0]).tolist() == [SAMPLES_PER_FRAME * number for number in range(20)]
        line_s = 1.0 + OPUS_LOOKAHEAD / 48_000  # where a packet of media time 0 leaves
        picture_s, sound_s = (packets[:, 1] - packets[:, 0] / 48_000 for packets in (pictures, sound))
        assert np.allclose(picture_s[settled:], line_s), "a receiver sees what it hears"
        assert np.allclose(sound_s[2 * settled :], line_s), "evenly, every 20 ms"
        assert pictures[:at_once, 1].max() < 1.0 + 0.04 * at_once + 0.02, "who is late waits no longer"
        assert len(skews_s) == 20 and np.allclose(skews_s[settled:], 0)

    virtual(main)
