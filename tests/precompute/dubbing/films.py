"""Sound and text of made films, and what is found in a written one."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np

from engine.sound_file import SoundFile
from precompute.dubbing.source import Source

RATE_HZ = 48_000
LINES = [(0.2, 0.6, "Good morning"), (1.2, 1.8, "and good night & <you>")]
CHAPTERS = [(0, 1000, "One"), (1000, 2000, "Two")]


def clicks(*times_s, seconds=2.0, channels=2):
    """Silence with a short tone at each of the times."""
    samples = np.zeros((round(seconds * RATE_HZ), channels), np.float32)
    for time_s in times_s:
        first = round(time_s * RATE_HZ)
        samples[first : first + 480] = 0.6 * np.sin(np.arange(480) / 5)[:, None]
    return samples


def encode_sound(stream, samples, layout, start_s=0):
    frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="flt", layout=layout)
    frame.sample_rate, frame.time_base, frame.pts = RATE_HZ, Fraction(1, RATE_HZ), round(start_s * RATE_HZ)
    return [*stream.encode(frame), *stream.encode(None)]


def text_packet(text, start_s, end_s, mov_text):
    payload = text.encode()
    packet = av.Packet(len(payload).to_bytes(2, "big") + payload if mov_text else payload)
    packet.time_base = Fraction(1, 1000)
    packet.pts = packet.dts = round(start_s * 1000)
    packet.duration = round((end_s - start_s) * 1000)
    return packet


def times_in(path):
    """The times of all pictures in the container."""
    source = Source(path)
    times_s = [picture.time_s for picture in source.pictures()]
    return [source.times.origin_s + time_s for time_s in times_s]


def clicks_in(path, track=0):
    """When the tones of a sound track begin."""
    sound = SoundFile(path, track)
    samples = np.abs(np.concatenate(list(sound.blocks(RATE_HZ))))
    loud = np.flatnonzero(samples > 0.2)
    begins = loud[np.diff(loud, prepend=-RATE_HZ) > RATE_HZ // 20]
    return [round(float(begin / RATE_HZ + sound.start_s), 2) for begin in begins]


def lines_in(path):
    """(begin, end, text) of all subtitles."""
    found = []
    with av.open(str(path)) as container:
        stream = container.streams.subtitles[0]
        for packet in container.demux(stream):
            data = bytes(packet)
            text = data[2:] if stream.codec_context.name == "mov_text" else data
            if packet.pts is not None and text:
                begin_s, duration_s = (float(value * packet.time_base) for value in (packet.pts, packet.duration))
                found.append((round(begin_s, 2), round(begin_s + duration_s, 2), text.decode()))
    return found


def chapters_in(path):
    with av.open(str(path)) as container:
        return [
            (
                round(float(c["start"] * c["time_base"]), 2),
                round(float(c["end"] * c["time_base"]), 2),
                c["metadata"]["title"],
            )
            for c in container.chapters()
        ]
