"""Offline dubbing with the real networks: the file holds the speech whole, and the pictures of a live session."""

from __future__ import annotations

import dataclasses
import json
import resource
import shutil
import wave
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorRange

from engine.audio import read_speech
from engine.avatar.avatar import Avatar
from engine.backends.cpu import CpuBackend
from engine.commands.dub import Dub, dub, is_avatar
from engine.config import ComputeConfig, SessionConfig
from engine.errors import AvatarFileError, OutputError, SettingError, SpeechFormatError
from engine.live.job import PaintJob
from engine.live.pipeline import AvatarPipeline
from engine.media import SAMPLES_PER_FRAME
from engine.models.weights import load_face_model

SECONDS = 3
BT709 = 1
OLD = b"\0\0\0\x20ftypisom the old one"


@pytest.fixture(scope="module")
def pcm(speech_wav):
    return read_speech(speech_wav)[: SECONDS * 48_000]


def write_wav(path, samples, rate_hz=48_000, channels=1):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(samples.tobytes())
    return path


@pytest.fixture(scope="module")
def pipeline(avatar_path):
    return AvatarPipeline(CpuBackend.embedded(), Avatar.open(avatar_path), load_face_model())


@pytest.fixture(scope="module")
def units(pipeline, pcm):
    return list(pipeline.speak(pcm))


def test_the_units_hold_the_speech_sample_for_sample_from_the_first_frame(units, pcm):
    sound = np.concatenate([unit.samples for unit in units])
    assert np.array_equal(sound[: len(pcm)], pcm) and not sound[len(pcm) :].any()
    assert len(units) == -(-len(pcm) // SAMPLES_PER_FRAME) + SessionConfig().release_frames
    assert [unit.index for unit in units] == list(range(len(units))) and all(unit.fresh for unit in units)


def test_the_mouth_moves_and_ends_at_rest(pipeline, pcm):
    openings, timeline = [], pipeline.new_timeline(SessionConfig())
    timeline.start_utterance("a", 48_000, 1)
    timeline.push_audio("a", pcm.tobytes())
    timeline.end_utterance("a")
    while not timeline.idle:
        while (job := timeline.take(timeline.next_frame, lead=0)) is not None:
            if isinstance(job, PaintJob):
                openings += [float((frame.lips - pipeline.rest).abs().max()) for frame in job.frames]
            painted = [pipeline.first] * len(job.frames) if isinstance(job, PaintJob) else pipeline.perform(job)
            timeline.finish(job, painted, lead=0)
        timeline.emit()
    assert max(openings) > 0.03 and openings[-1] < 0.2 * max(openings)


def test_any_packets_give_the_same_pictures(pipeline, units, pcm):
    """Real networks, sound in packets of odd sizes, against the whole file at once."""
    timeline = pipeline.new_timeline(SessionConfig())
    timeline.start_utterance("a", 48_000, 1)
    for part in np.split(pcm[:48_000], range(777, 48_000, 777)):
        timeline.push_audio("a", part.tobytes())
    cut_up = []
    for _ in range(12):
        while (job := timeline.take(timeline.next_frame, lead=0)) is not None:
            timeline.finish(job, pipeline.perform(job), lead=0)
        cut_up.append(timeline.emit())
    for mine, whole in zip(cut_up, units, strict=False):
        assert np.array_equal(mine.image, whole.image) and np.array_equal(mine.samples, whole.samples)


def test_only_the_lower_face_is_painted(pipeline, units):
    loop, first = pipeline.avatar.loop, pipeline.avatar.open_base()
    unit = units[len(units) // 2]
    base = first.read(loop.frame_at(unit.index))
    left, top, size = pipeline.avatar.crop[loop.frame_at(unit.index)].tolist()
    changed = (unit.image != base).any(-1)
    assert changed.any() and not changed[: top + size // 4].any()
    assert changed.mean() < 0.25
    assert not changed[:, : max(0, left)].any() and not changed[:, left + size :].any()


@pytest.mark.slow
def test_a_dubbed_file_is_25_fps_h264_with_all_of_the_sound_in_aac(avatar_path, pcm, tmp_path):
    wav, out = write_wav(tmp_path / "speech.wav", pcm), tmp_path / "out.mp4"
    told = []
    report = dub(avatar_path, wav, out, progress=told.append)
    frames = report["pictures"]
    assert report == {"output": str(out), "seconds": frames / 25, "pictures": frames}
    assert told[-1].stage == "pictures" and told[-1].done == told[-1].total == frames and told[-1].left_s == 0
    assert frames == SECONDS * 25 + SessionConfig().release_frames
    avatar = Avatar.open(avatar_path)
    with av.open(str(out)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert video.codec_context.name == "h264" and audio.codec_context.name == "aac"
        assert video.average_rate == 25 and audio.rate == 48_000
        assert (video.width, video.height) == (avatar.width, avatar.height)
        colours = video.codec_context
        assert colours.colorspace == colours.color_primaries == colours.color_trc == BT709
        assert colours.color_range == ColorRange.MPEG
        images, pts = [], []
        for frame in container.decode(video):
            images.append(frame.to_ndarray(format="rgb24") if len(images) < 2 else None)
            pts.append(frame.pts * frame.time_base)
        with avatar.open_base() as base:
            source = base.read(avatar.loop.start)[:60].reshape(-1, 3).mean(0)
        assert np.abs(images[0][:60].reshape(-1, 3).mean(0) - source).max() <= 2  # outside the face
        assert len(pts) == frames and all(abs(float(b - a) - 0.04) < 1e-6 for a, b in pairwise(pts))
    heard = read_speech(out)
    assert abs(len(heard) - frames * SAMPLES_PER_FRAME) <= SAMPLES_PER_FRAME
    lag = (
        np.argmax([np.dot(heard[4800 + d : 96_000 + d].astype(float), pcm[4800:96_000]) for d in range(0, 2400, 8)]) * 8
    )
    assert lag <= 48, "sound and picture begin together"


def test_a_style_of_other_networks_is_refused(pipeline):
    foreign = dataclasses.replace(pipeline.avatar, style=torch.zeros(64))
    with pytest.raises(AvatarFileError, match="a style of 64 numbers, expected 128"):
        AvatarPipeline(CpuBackend.embedded(), foreign, load_face_model())


# ---- sound files


@pytest.mark.parametrize(("rate_hz", "channels"), [(8_000, 1), (44_100, 2), (24_000, 1)])
def test_sound_files_of_any_rate_become_mono_at_48_khz(tmp_path, rate_hz, channels):
    tone = (8000 * np.sin(np.arange(rate_hz) / rate_hz * 2 * np.pi * 300)).astype(np.int16)
    pcm = read_speech(write_wav(tmp_path / "tone.wav", np.repeat(tone, channels), rate_hz, channels))
    assert pcm.dtype == np.int16 and abs(len(pcm) - 48_000) < 100
    assert abs(np.abs(pcm[1000:-1000]).max() - 8000) < 200


def test_the_sound_of_a_video_may_be_used(speaker_video):
    assert len(read_speech(speaker_video)) > 48_000


@pytest.mark.parametrize("content", [b"", b"this is not sound", b"RIFF\x24\0\0\0WAVEfmt "])
def test_a_file_that_holds_no_sound_is_refused(tmp_path, content):
    path = tmp_path / "speech.wav"
    path.write_bytes(content)
    with pytest.raises(SpeechFormatError, match=r"speech\.wav"):
        read_speech(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.wav", tmp_path):
        with pytest.raises(SpeechFormatError, match="cannot be read as sound"):
            read_speech(path)


def test_a_wav_without_samples_is_refused(tmp_path):
    with pytest.raises(SpeechFormatError, match="no sound"):
        read_speech(write_wav(tmp_path / "empty.wav", np.zeros(0, np.int16)))


def test_bad_speech_or_a_bad_avatar_leaves_no_output(avatar_path, speech_wav, tmp_path):
    out = tmp_path / "out.mp4"
    (tmp_path / "bad.wav").write_bytes(b"nothing")
    with pytest.raises(SpeechFormatError):
        dub(avatar_path, tmp_path / "bad.wav", out)
    with pytest.raises(AvatarFileError):
        dub(tmp_path / "none.avatar", speech_wav, out)
    assert not out.exists()


# ---- outputs


@pytest.mark.parametrize("which", ["avatar", "speech"])
def test_an_output_that_is_an_input_is_refused(avatar_path, speech_wav, tmp_path, which):
    avatar = shutil.copy(avatar_path, tmp_path / "avatar.mp4")
    speech = shutil.copy(speech_wav, tmp_path / "speech.mp4")
    link = tmp_path / "out.mp4"
    link.symlink_to({"avatar": avatar, "speech": speech}[which])
    with pytest.raises(OutputError, match=f"is the {which} itself"):
        dub(avatar, speech, link)
    assert avatar.read_bytes() == avatar_path.read_bytes() and speech.read_bytes() == speech_wav.read_bytes()


@pytest.mark.parametrize(
    ("name", "reason"), [("no/out.mp4", "no folder"), ("folder.mp4", "is a folder"), ("out.txt", "ending in")]
)
def test_an_output_that_cannot_be_is_refused_before_the_work(avatar_path, speech_wav, tmp_path, name, reason):
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(OutputError, match=reason):
        dub(avatar_path, speech_wav, tmp_path / name)


@pytest.mark.slow
def test_sound_in_blocks_gives_the_same_units(pipeline, units, pcm):
    in_blocks = list(pipeline.speak(iter(np.split(pcm[:48_000], range(777, 48_000, 7_777)))))
    whole = list(pipeline.speak(pcm[:48_000]))
    assert len(in_blocks) == len(whole)
    for mine, other in zip(in_blocks, whole, strict=True):
        assert np.array_equal(mine.image, other.image) and np.array_equal(mine.samples, other.samples)


@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_the_old_file_and_nothing_else(avatar_path, pcm, tmp_path):
    wav, out = write_wav(tmp_path / "speech.wav", pcm[:48_000]), tmp_path / "out.mp4"
    out.write_bytes(OLD)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OutputError, match="make room"):
            dub(avatar_path, wav, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert out.read_bytes() == OLD and sorted(tmp_path.iterdir()) == [out, wav]


# ---- avatars and videos


def test_avatars_and_videos_are_told_apart_by_content(avatar_path, speaker_video, tmp_path):
    renamed = tmp_path / "avatar.mp4"
    renamed.symlink_to(avatar_path)
    (tmp_path / "damaged.avatar").write_bytes(b"nothing")
    assert is_avatar(renamed) and is_avatar(tmp_path / "damaged.avatar") and is_avatar(tmp_path / "none.avatar")
    assert not is_avatar(speaker_video) and not is_avatar(tmp_path / "none.mp4") and not is_avatar(tmp_path)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"length": "cut"}, "--length:"),
        ({"from_s": 1.0, "to_s": 2.0}, "--from, --to:"),
        ({"mix_db": 12.0}, "--mix:"),
        ({"report": "r.html", "resume": True}, "--report, --resume:"),
        ({"face": 1}, "--face:"),
    ],
)
def test_options_of_videos_are_refused_for_an_avatar_by_name(avatar_path, speech_wav, tmp_path, options, named):
    with pytest.raises(SettingError, match=f"^{named} not for an avatar"):
        dub(avatar_path, speech_wav, tmp_path / "out.mp4", **options)
    with pytest.raises(SettingError, match="--speech: not for an avatar"):
        dub(avatar_path, {1: speech_wav}, tmp_path / "out.mp4")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, "expected one SPEECH, or --speech FACE=FILE"),
        ({"speech": Path("a.wav"), "speeches": ("1=b.wav",)}, "expected one SPEECH, or --speech FACE=FILE"),
        ({"speeches": ("anna=b.wav",)}, "--speech anna=b.wav; expected FACE=FILE"),
        ({"speeches": ("1=",)}, "--speech 1=; expected FACE=FILE"),
        ({"speeches": ("1=a.wav", "1=b.wav")}, "face 1 has a speech already"),
        ({"speeches": ("1=a.wav",), "face": 1}, "--face 1: the speeches name their faces"),
        ({"speech": Path("a.wav"), "compute": ComputeConfig(quality="fast-half")}, "--quality fast-half"),
        ({"speech": Path("a.wav"), "compute": ComputeConfig(device="cuda")}, "--device cuda"),
    ],
)
def test_a_command_that_makes_no_sense_is_refused_before_the_work(speaker_video, tmp_path, arguments, expected):
    with pytest.raises(SettingError, match=expected):
        Dub(source=speaker_video, output=tmp_path / "out.mp4", **arguments).run()


def test_with_json_each_line_of_the_output_is_an_event(avatar_path, pcm, tmp_path, capsys):
    wav, out = write_wav(tmp_path / "speech.wav", pcm[:9600]), tmp_path / "out.mp4"
    compute = ComputeConfig(device="cpu")
    assert Dub(source=avatar_path, speech=wav, output=out, json=True, compute=compute).run() == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events[:-1]] == ["progress"] * (len(events) - 1) and len(events) > 1
    assert events[-1] == {"event": "finished", "report": {"output": str(out), "seconds": 0.52, "pictures": 13}}
    with pytest.raises(SpeechFormatError):
        Dub(source=avatar_path, speech=tmp_path / "none.wav", output=out, json=True, compute=compute).run()
    (event,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert event["event"] == "error" and event["code"] == "speech-format" and "none.wav" in event["message"]


def test_the_command_replaces_the_old_file(avatar_path, pcm, tmp_path, capsys):
    wav, out = write_wav(tmp_path / "speech.wav", pcm[:9600]), tmp_path / "out.mp4"
    out.write_bytes(OLD)
    assert Dub(source=avatar_path, speech=wav, output=out, compute=ComputeConfig(device="cpu")).run() == 0
    assert f"{out}: 0.5 s of video in" in capsys.readouterr().out
    assert len(read_speech(out)) > 9600 and sorted(tmp_path.iterdir()) == [out, wav]


def test_a_video_has_no_expressiveness(speaker_video, speech_wav, tmp_path):
    with pytest.raises(SettingError, match="--expressiveness 1.5: an avatar has it"):
        dub(speaker_video, speech_wav, tmp_path / "out.mp4", expressiveness=1.5)
