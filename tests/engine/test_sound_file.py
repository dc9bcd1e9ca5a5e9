"""Any sound file becomes mono: as loud as its loudest channel, whatever its layout, and past what is damaged."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading

import av
import numpy as np
import pytest

from engine.audio import read_speech
from engine.errors import SpeechFormatError
from engine.sound_file import SoundFile

RATE_HZ = 48_000
LEVEL = 0.25
TONE = LEVEL * np.sin(2 * np.pi * 100 * np.arange(RATE_HZ) / RATE_HZ)  # low enough for an LFE channel
PACKED = {"pcm_s16le": "s16", "flac": "s16"}


def write_sound(path, channels, layout, *, codec="pcm_s16le", rate_hz=RATE_HZ):
    """A file of the channels [C, N] in [-1, 1]."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate_hz, layout=layout)
        packed = codec in PACKED
        for start in range(0, channels.shape[1], 1024):
            piece = np.ascontiguousarray(channels[:, start : start + 1024], np.float32)
            frame = av.AudioFrame("s16" if packed else "fltp", layout, piece.shape[1])
            for plane, samples in zip(frame.planes, [piece.T] if packed else piece, strict=False):
                plane.update((np.rint(samples * 32767).astype("<i2") if packed else samples).tobytes())
            frame.sample_rate, frame.pts = rate_hz, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def one_of(count, channel):
    channels = np.zeros((count, RATE_HZ))
    channels[channel] = TONE
    return channels


def level(path):
    """Amplitude of the tone in the middle of the file."""
    inner = np.concatenate(list(SoundFile(path).blocks(RATE_HZ)))[4800:-4800]
    return float(np.sqrt(2 * np.square(inner).mean()))


@pytest.mark.parametrize(("layout", "count"), [("7.1", 8), ("hexadecagonal", 16), ("24 channels", 24)])
@pytest.mark.parametrize(("suffix", "codec"), [("wav", "pcm_s16le"), ("mka", "pcm_s16le")])
def test_eight_channels_and_more_are_mixed(tmp_path, layout, count, suffix, codec):
    path = write_sound(tmp_path / f"many.{suffix}", np.repeat(TONE[None], count, 0), layout, codec=codec)
    assert level(path) == pytest.approx(LEVEL, rel=0.02)


@pytest.mark.parametrize(("suffix", "codec"), [("flac", "flac"), ("m4a", "aac"), ("mka", "aac")])
def test_compressed_sound_of_eight_channels_is_mixed(tmp_path, suffix, codec):
    made = tmp_path / f"made.{suffix}"
    source = write_sound(tmp_path / "source.wav", np.repeat(TONE[None], 8, 0), "7.1")
    with av.open(str(source)) as reader, av.open(str(made), "w") as writer:
        stream = writer.add_stream(codec, rate=RATE_HZ, layout="7.1")
        to_format = av.AudioResampler(format=stream.codec_context.codec.audio_formats[0], layout="7.1")
        for frame in reader.decode(audio=0):
            for converted in to_format.resample(frame):
                writer.mux(stream.encode(converted))
        writer.mux(stream.encode(None))
    assert level(made) == pytest.approx(LEVEL, rel=0.1)


def test_more_channels_than_can_be_mixed_are_refused(tmp_path):
    path = tmp_path / "array.wav"
    write_sound(path, np.zeros((2, 480)), "stereo")
    header = bytearray(path.read_bytes())
    header[22:24] = (200).to_bytes(2, "little")
    header[32:34] = (400).to_bytes(2, "little")
    path.write_bytes(bytes(header) + bytes(400 * 480))
    with pytest.raises(SpeechFormatError, match=r"array\.wav"):
        SoundFile(path)


@pytest.mark.parametrize(
    ("layout", "channels"),
    [
        ("stereo", one_of(2, 0)),
        ("stereo", one_of(2, 1)),
        ("stereo", np.stack([TONE, TONE])),
        ("5.1", one_of(6, 2)),  # the centre
        ("5.1", one_of(6, 5)),  # a surround
        ("7.1", one_of(8, 3)),  # the LFE alone
        ("quad", one_of(4, 3)),
    ],
)
def test_speech_is_as_loud_as_its_loudest_channel(tmp_path, layout, channels):
    assert level(write_sound(tmp_path / "a.mka", channels, layout)) == pytest.approx(LEVEL, rel=0.02)


def test_different_sound_on_both_sides_is_kept_and_does_not_clip(tmp_path):
    other = 0.9 * np.sin(2 * np.pi * 333 * np.arange(RATE_HZ) / RATE_HZ)
    path = write_sound(tmp_path / "two.wav", np.stack([TONE / LEVEL * 0.9, other]), "stereo")
    mono = np.concatenate(list(SoundFile(path).blocks(RATE_HZ)))
    assert np.abs(mono).max() <= 1.001
    for wave in (TONE / LEVEL, other / 0.9):
        assert 2 * (mono * wave).mean() > 0.4  # neither side is lost


@pytest.mark.parametrize(
    ("layout", "channels", "named"),
    [
        ("stereo", np.stack([TONE, -TONE]), "FR"),
        ("stereo", np.stack([TONE * 0.5, -TONE]), "FL"),
        ("5.1", np.concatenate([one_of(6, 0)[:1], -one_of(6, 0)[:1], np.zeros((4, RATE_HZ))]), "FR"),
        ("4 channels", np.stack([TONE, -TONE, TONE, TONE]), "2"),
    ],
)
def test_a_channel_in_opposite_phase_stays_out_and_is_named(tmp_path, layout, channels, named, caplog):
    path = write_sound(tmp_path / "inverted.wav", channels, layout)
    assert level(path) == pytest.approx(np.abs(channels).max(), rel=0.02)
    assert f"channel {named} is in opposite phase" in " ".join(SoundFile(path).remarks)
    assert "opposite phase" in caplog.text


def test_an_offset_and_noise_do_not_hide_opposite_phase(tmp_path):
    noise = 0.05 * np.random.default_rng(0).standard_normal((2, RATE_HZ))
    channels = np.stack([TONE, -TONE]) + noise + 0.3
    assert level(write_sound(tmp_path / "a.wav", channels, "stereo")) > 0.9 * LEVEL


def test_silence_stays_silence(tmp_path):
    path = write_sound(tmp_path / "silent.wav", np.zeros((6, RATE_HZ)), "5.1")
    assert not read_speech(path).any() and SoundFile(path).remarks == ()


# ---- damaged and joined files


def compressed(path, codec, *, rate_hz=RATE_HZ, layout="mono", seconds=4):
    """Noise, so that no packet is small."""
    noise = 0.2 * np.random.default_rng(1).standard_normal((av.AudioLayout(layout).nb_channels, seconds * rate_hz))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate_hz, layout=layout)
        stream.bit_rate = 64_000
        frame = av.AudioFrame.from_ndarray(noise.astype(np.float32), format="fltp", layout=layout)
        frame.sample_rate = rate_hz
        resampler = av.AudioResampler(format=stream.codec_context.codec.audio_formats[0], layout=layout, rate=rate_hz)
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp3", "libmp3lame"), ("a.m4a", "aac"), ("a.ogg", "libopus"), ("a.flac", "flac")]
)
def test_bad_bytes_cost_only_their_place(tmp_path, name, codec):
    path = compressed(tmp_path / name, codec)
    data, rng = bytearray(path.read_bytes()), random.Random(0)
    for place in (0.3, 0.5):
        start = int(place * len(data))
        data[start : start + 300] = rng.randbytes(300)
    path.write_bytes(data)
    sound = SoundFile(path)
    heard = np.concatenate(list(sound.blocks(RATE_HZ)))
    assert len(heard) == pytest.approx(4 * RATE_HZ, rel=0.05)
    assert np.abs(heard[-RATE_HZ // 2 :]).max() > 0.1  # the end is heard, at its time


def test_what_was_lost_is_said(tmp_path):
    path = compressed(tmp_path / "a.mp3", "libmp3lame")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + len(data) // 8] = bytes(len(data) // 8)
    path.write_bytes(data)
    (remark,) = SoundFile(path).remarks
    assert "are missing in it; export the sound again" in remark


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a.mp3", [("libmp3lame", 48_000, "mono"), ("libmp3lame", 44_100, "stereo")]),
        ("a.ogg", [("libopus", 48_000, "mono"), ("libopus", 48_000, "mono")]),
        ("b.mp3", [("libmp3lame", 24_000, "mono")] * 3),
        ("more-channels.ogg", [("libopus", 48_000, "mono"), ("libopus", 48_000, "stereo")]),
        (
            "fewer-channels.ogg",
            [("libopus", 48_000, "5.1"), ("libopus", 48_000, "mono"), ("libopus", 48_000, "stereo")],
        ),
    ],
)
def test_joined_files_are_heard_to_their_end(tmp_path, name, parts):
    path = tmp_path / name
    made = [
        compressed(tmp_path / f"{number}-{name}", codec, rate_hz=rate, layout=layout, seconds=2)
        for number, (codec, rate, layout) in enumerate(parts)
    ]
    path.write_bytes(b"".join(part.read_bytes() for part in made))
    assert len(read_speech(path)) == pytest.approx(2 * len(parts) * RATE_HZ, rel=0.05)
    assert not SoundFile(path).remarks


# ---- names, pipes, memory


@pytest.mark.parametrize("name", ["take:2.wav", "-x.wav", "a b'\"$(&)%d.wav", "wörter\n.wav", os.fsdecode(b"\xff.wav")])
def test_any_name_is_read(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    source = write_sound(tmp_path / "source.wav", TONE[None], "mono")
    source.rename(tmp_path / name)
    assert len(read_speech(type(tmp_path)(name))) == RATE_HZ  # relative


def test_speech_may_come_from_a_pipe(tmp_path):
    data = write_sound(tmp_path / "a.wav", TONE[None], "mono").read_bytes()
    pipe = tmp_path / "pipe.wav"
    os.mkfifo(pipe)
    threading.Thread(target=pipe.write_bytes, args=(data,), daemon=True).start()
    assert len(read_speech(pipe)) == RATE_HZ


@pytest.mark.slow
def test_blocks_of_a_quarter_of_an_hour_take_no_more_memory_than_those_of_a_minute(tmp_path):
    code = (
        "import resource, sys; from pathlib import Path; from engine.sound_file import SoundFile\n"
        "total = sum(len(block) for block in SoundFile(Path(sys.argv[1])).blocks(16_000))\n"
        "print(total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for seconds in (60, 900):
        path = tmp_path / f"{seconds}.wav"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("pcm_s16le", rate=8_000, layout="stereo")
            for _ in range(seconds // 20):
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 320_000), np.int16), format="s16", layout="stereo")
                frame.sample_rate = 8_000
                container.mux(stream.encode(frame))
        done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
        samples, peak_kb = map(int, done.stdout.split())
        assert samples == seconds * 16_000
        peaks.append(peak_kb)
    assert peaks[1] < peaks[0] + 30_000
