"""Small videos of every kind, with a moving gradient and patches of colour."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

sys.path.insert(0, str(Path(__file__).parent))  # for the helpers beside this file

from drawings import HEIGHT, WIDTH, drawing, write_wave
from films import CHAPTERS, LINES, RATE_HZ, clicks, encode_sound, text_packet

from engine.sound_file import SoundFile
from precompute.dubbing.encoding import encoding_of
from precompute.dubbing.muxer import finish
from precompute.dubbing.people import Person, Run
from precompute.dubbing.source import Source
from precompute.dubbing.timing import plan
from precompute.dubbing.writer import Parts


@pytest.fixture(scope="session")
def make_video():
    """make_video(path, times_s or count, ...): the drawings, encoded; returns the path."""

    def make(
        path,
        times_s=12,
        *,
        fps=Fraction(25),
        codec="libx264",
        pix_fmt="yuv420p",
        size=(WIDTH, HEIGHT),
        time_base=None,
        options=None,
        colours=(1, 1, 1, 1),
        aspect=None,
        matrix=None,
        draw=drawing,
        container_options=None,
    ):
        times_s = [n / Fraction(fps) for n in range(times_s)] if isinstance(times_s, int) else times_s
        with av.open(str(path), "w", options=container_options or {}) as container:
            stream = container.add_stream(codec, rate=fps, options=options or {})
            stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
            context = stream.codec_context
            context.colorspace, context.color_primaries, context.color_trc, context.color_range = colours
            context.time_base = stream.time_base = time_base or 1 / Fraction(fps)
            if aspect:
                context.sample_aspect_ratio = aspect
            if matrix:
                stream.set_display_matrix(matrix)
            convert = VideoReformatter()
            for number, time_s in enumerate(times_s):
                image = av.VideoFrame.from_ndarray(draw(number, size), format="rgb24")
                frame = convert.reformat(image, format=pix_fmt, dst_colorspace=colours[0], dst_color_range=colours[3])
                frame.time_base, frame.pts = context.time_base, round(time_s / context.time_base)
                frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range = colours
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return make


@pytest.fixture
def rich(tmp_path, make_video):
    """rich(name, ...): a video of two seconds with sound of two channels, a second sound track of six, subtitles,
    chapters and metadata; its first picture at `start_s`, its first sound at `sound_s`."""

    def make(name="rich.mp4", *, start_s=0, sound_s=0, fps=Fraction(30_000, 1001), codec="aac", **facts):
        plain = make_video(
            tmp_path / "plain.mp4",
            [start_s + n / fps for n in range(60)],
            fps=fps,
            time_base=Fraction(1, 30_000),
            container_options={"movie_timescale": "30000"},
            **facts,
        )
        path = tmp_path / name
        mp4 = path.suffix in (".mp4", ".mov")
        options = {"movie_timescale": "30000"} if mp4 else {}
        with av.open(str(plain)) as source, av.open(str(path), "w", container_options=options) as container:
            video = container.add_stream_from_template(source.streams.video[0], opaque=True)
            if facts.get("matrix"):
                video.set_display_matrix(facts["matrix"])
            video.metadata.update(language="fra", handler_name="camera")
            sounds = []
            for layout, language in (("stereo", "deu"), ("5.1", "fra")):
                sound = container.add_stream(codec, rate=RATE_HZ)
                sound.layout = layout
                sound.metadata.update(language=language, title=f"sound of {language}")
                sounds.append(sound)
            sounds[0].disposition, sounds[1].disposition = Disposition.default, Disposition.comment
            text = container.add_stream("mov_text") if mp4 else container.add_mux_stream("subrip")
            if mp4:
                text.codec_context.subtitle_header = b"[Script Info]\n"
                text.codec_context.time_base = Fraction(1, 1000)
            text.metadata["language"] = "deu"
            container.metadata.update(title="A film", artist="Somebody", comment="made up")
            container.set_chapters(
                [
                    {"id": n, "start": start, "end": end, "time_base": Fraction(1, 1000), "metadata": {"title": title}}
                    for n, (start, end, title) in enumerate(CHAPTERS)
                ]
            )
            packets = []
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = video
                    packets.append(packet)
            for sound, samples, layout in (
                (sounds[0], clicks(0.5, 1.5), "stereo"),
                (sounds[1], clicks(0.7, channels=6), "5.1"),
            ):
                packets += encode_sound(sound, samples, layout, sound_s)
            for begin_s, end_s, line in LINES:
                packet = text_packet(line, begin_s, end_s, mp4)
                packet.stream = text
                packets.append(packet)
            for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
                container.mux(packet)
        return path

    return make


@pytest.fixture
def dub(tmp_path):
    """dub(path, output, speech samples, ...): the video with other sound, its pictures encoded again as they are."""

    def make(path, output, speech=None, *, speech_s=1.0, mix_db=None, **lengths):
        source = Source(path)
        list(source.pictures())
        if not isinstance(speech, SoundFile):
            speech = write_wave(tmp_path / "speech.wav", clicks(0.25, seconds=speech_s, channels=1), RATE_HZ)
        made = plan(source.times, lengths.pop("length", "video"), speech_s=speech.duration_s, **lengths)
        with Parts(tmp_path / f"{output}.parts", made, encoding_of(source, output[output.rindex(".") :])) as parts:
            list(parts.write(picture.frame for _, picture in made.pictures(source)))
            remarks = finish(tmp_path / output, source, made, parts, [speech], mix_db=mix_db)
            parts.remove()
        return tmp_path / output, remarks

    return make


@pytest.fixture
def a_run():
    """a_run(opening=…, …): a run of a face with these measures."""

    def make(start=0, shot=0, covered=(), **measures):
        count = max((len(values) for values in measures.values()), default=40)
        plain = {"opening": 0.02, "lip_error_px": 0.3, "yaw_deg": 0.0, "face_px": 200.0, "sharpness": 100.0}
        arrays = {name: np.full(count, value, np.float32) for name, value in plain.items()} | measures
        return Run(
            shot=shot,
            start=start,
            alpha=torch.zeros(count, 50),
            beta=torch.zeros(count, 50),
            pose=torch.zeros(count, 6),
            crop=np.tile(np.array([0, 0, 256], np.int32), (count, 1)),
            seen=np.ones(count, bool),
            covered=np.isin(np.arange(count), covered),
            **arrays,
        )

    return make


@pytest.fixture
def a_person():
    """a_person(runs)."""
    return lambda runs, number=1: Person(number, tuple(runs), torch.zeros(50), torch.zeros(50), torch.zeros(128))
