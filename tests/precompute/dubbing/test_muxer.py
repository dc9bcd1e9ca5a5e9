"""The finished file: pictures, sound, and everything else that the source has, each at its time."""

from __future__ import annotations

import os
import resource
from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition
from drawings import write_wave
from films import (
    LINES,
    RATE_HZ,
    chapters_in,
    clicks,
    clicks_in,
    encode_sound,
    lines_in,
    times_in,
)

from engine.errors import OutputError
from engine.sound_file import SoundFile
from precompute.dubbing.encoding import encoding_of
from precompute.dubbing.muxer import finish
from precompute.dubbing.source import Source
from precompute.dubbing.timing import plan
from precompute.dubbing.writer import Parts


def test_everything_beside_the_speech_is_taken_over(rich, dub):
    output, remarks = dub(rich(), "out.mp4")
    assert remarks == ()
    with av.open(str(output)) as container:
        kinds = [(stream.type, stream.codec_context.name) for stream in list(container.streams)[:4]]
        assert kinds == [("video", "h264"), ("audio", "aac"), ("audio", "aac"), ("subtitle", "mov_text")]
        video, speech, other, text = list(container.streams)[:4]
        assert (video.metadata["language"], video.metadata["handler_name"]) == ("fra", "camera")
        assert (speech.layout.name, speech.rate, speech.disposition) == ("mono", RATE_HZ, Disposition.default)
        assert (other.layout.name, other.metadata["language"], other.disposition) == ("5.1", "fra", Disposition.comment)
        assert text.metadata["language"] == "deu"
        assert {name: container.metadata[name] for name in ("title", "artist", "comment")} == {
            "title": "A film", "artist": "Somebody", "comment": "made up",
        }  # fmt: skip
    assert times_in(output) == [Fraction(n * 1001, 30_000) for n in range(60)]
    assert clicks_in(output) == [0.25] and clicks_in(output, 1) == [0.7]
    assert lines_in(output) == [(begin_s, end_s, line) for begin_s, end_s, line in LINES]
    assert chapters_in(output) == [(0.0, 1.0, "One"), (1.0, 2.0, "Two")]


def test_copied_sound_is_the_same_packets(rich, dub):
    source = rich()
    output, _ = dub(source, "out.mp4")

    def payloads(path):
        with av.open(str(path)) as container:
            return [bytes(packet) for packet in container.demux(audio=1) if packet.size]

    assert payloads(output) == payloads(source)


@pytest.mark.parametrize(
    ("name", "output"),
    [("rich.mp4", "out.mkv"), ("rich.mkv", "out.mp4"), ("rich.mkv", "out.mkv"), ("rich.mp4", "out.mov")],
)
def test_subtitles_and_chapters_change_with_the_container(rich, dub, name, output):
    path, remarks = dub(rich(name), output)
    assert remarks == ()
    plain = output.endswith((".mp4", ".mov")) and name.endswith(".mkv")
    wanted = [(begin_s, end_s, line.replace("<you>", "").strip() if plain else line) for begin_s, end_s, line in LINES]
    assert lines_in(path) == wanted
    assert chapters_in(path) == [(0.0, 1.0, "One"), (1.0, 2.0, "Two")]
    assert clicks_in(path) == [0.25] and clicks_in(path, 1) == [0.7]
    with av.open(str(path)) as container:
        assert [stream.metadata.get("language") for stream in container.streams.audio][1] in ("fra", "fre")
        assert container.metadata["title" if "title" in container.metadata else "TITLE"] == "A film"
    assert np.abs(np.array(times_in(path), float) - np.arange(60) * 1001 / 30_000).max() < 1e-3


def test_what_the_container_cannot_hold_is_left_out_by_name(rich, dub):
    output, remarks = dub(rich(), "out.webm")
    assert {remark.code for remark in remarks} == {"track-left-out"}
    assert "audio track 3 (aac)" in remarks[0].text and "webm" in remarks[0].text
    assert lines_in(output)[0][2] == "Good morning" and clicks_in(output) == [0.25]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize(("start_s", "sound_s"), [(Fraction(1, 2), 0), (0, Fraction(1, 2)), (2, 3)])
def test_pictures_and_other_sound_keep_their_distance(rich, dub, suffix, start_s, sound_s):
    output, _ = dub(rich(f"rich{suffix}", start_s=start_s, sound_s=sound_s), f"out{suffix}")
    first_s = float(times_in(output)[0])
    offset_s = float(start_s) - first_s  # the output may begin at zero
    assert clicks_in(output, 1) == [pytest.approx(0.7 + float(sound_s) - offset_s, abs=0.02)]
    assert clicks_in(output) == [pytest.approx(first_s + 0.25, abs=0.02)]  # the speech begins with the pictures


def test_a_first_picture_behind_the_sound_keeps_its_exact_time(rich, dub):
    output, _ = dub(rich(start_s=Fraction(7007, 30_000)), "out.mp4")
    assert times_in(output) == [Fraction((n + 7) * 1001, 30_000) for n in range(60)]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_speech_begins_exactly_at_from_between_the_originals_sound(rich, dub, suffix):
    output, _ = dub(rich(f"rich{suffix}"), f"out{suffix}", speech_s=0.6, from_s=0.8, to_s=1.45)
    assert clicks_in(output) == [0.5, 1.05, 1.5]
    with av.open(str(output)) as container:
        sound = container.streams.audio[0]
        assert (sound.layout.name, sound.metadata["language"] in ("deu", "ger")) == ("stereo", True)


def test_mix_keeps_the_originals_sound_under_the_speech(rich, dub):
    output, _ = dub(rich(), "out.mp4", mix_db=3)
    assert clicks_in(output) == [0.25, 0.5, 1.5]


def test_sound_of_six_channels_stays_under_the_speech(tmp_path, make_video, dub):
    path = tmp_path / "v.mp4"
    with av.open(str(make_video(tmp_path / "plain.mp4", 50))) as source, av.open(str(path), "w") as container:
        video = container.add_stream_from_template(source.streams.video[0], opaque=True)
        sound = container.add_stream("aac", rate=RATE_HZ)
        sound.layout = "5.1"
        container.mux(encode_sound(sound, clicks(0.5, 1.5, channels=6), "5.1"))
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = video
                container.mux(packet)
    output, _ = dub(path, "out.mp4", mix_db=0)
    assert (SoundFile(output).layout, SoundFile(output).rate_hz) == ("5.1", RATE_HZ)
    assert clicks_in(output) == [0.25, 0.5, 1.5]
    samples = np.concatenate(list(SoundFile(output).channels(RATE_HZ, "5.1")))
    levels = np.abs(samples[round(0.25 * RATE_HZ) : round(0.26 * RATE_HZ)]).max(0)
    assert levels.argmax() == 2 and np.delete(levels, 2).max() < 0.05  # the speech is in the centre


def test_a_cut_output_is_short_in_every_track(rich, dub):
    output, _ = dub(rich(), "out.mp4", speech_s=1.0, length="cut")
    assert len(times_in(output)) == 30
    assert SoundFile(output).duration_s == pytest.approx(1.0, abs=0.03)
    assert SoundFile(output, 1).duration_s == pytest.approx(1.0, abs=0.05)
    assert [line[2] for line in lines_in(output)] == ["Good morning"]
    assert chapters_in(output)[0][2] == "One"


def test_other_tracks_follow_a_passage_that_repeats(rich, dub):
    output, _ = dub(rich(), "out.mp4", speech_s=1.0, length="loop", from_s=0.9, to_s=1.1)
    shift_s = float(times_in(output)[-1] - Fraction(59 * 1001, 30_000))
    assert shift_s > 0.7
    assert lines_in(output)[1][0] == pytest.approx(1.2 + shift_s, abs=0.02)
    assert clicks_in(output, 1) == [0.7] and clicks_in(output)[-1] == pytest.approx(1.5 + shift_s, abs=0.02)


def test_other_sound_is_silent_in_a_passage_that_stretches(rich, dub):
    output, _ = dub(rich(), "out.mp4", speech_s=1.2, length="stretch", from_s=0.6, to_s=1.4)
    assert clicks_in(output, 1) == []  # at 0.7 s
    assert clicks_in(output)[0] == 0.5 and clicks_in(output)[-1] == pytest.approx(1.9, abs=0.02)


def test_subtitles_stretch_with_the_pictures(rich, dub):
    output, remarks = dub(rich(), "out.mp4", speech_s=4.004, length="stretch")
    assert ["audio track 3 (aac) does not stretch" in remark.text for remark in remarks] == [True]
    assert float(times_in(output)[-1]) == pytest.approx(59 * 1001 / 15_000, abs=1e-3)
    assert [line[:2] for line in lines_in(output)] == [
        pytest.approx((0.4, 1.2), abs=0.02),
        pytest.approx((2.4, 3.6), abs=0.02),
    ]


@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (-1, 0, 0, -1), (-1, 0, 0, 1)])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_the_display_matrix_is_kept_or_missed_by_name(rich, dub, matrix, suffix):
    a, b, c, d = matrix
    path = rich(matrix=[a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30])
    output, remarks = dub(path, f"out{suffix}")
    mirrored = a * d - b * c < 0 and suffix == ".mkv"
    assert [remark.code for remark in remarks] == ["mirrored"] * mirrored
    if not mirrored:
        assert Source(output).display == Source(path).display


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("aspect", [Fraction(4, 3), Fraction(8, 9)])
def test_the_shape_of_pixels_is_kept(make_video, tmp_path, dub, suffix, aspect):
    output, _ = dub(make_video(tmp_path / "v.mp4", 30, aspect=aspect), f"out{suffix}")
    assert Source(output).display.aspect == aspect


def test_a_variable_rate_is_kept_over_the_joints_of_parts(make_video, tmp_path, dub, monkeypatch):
    monkeypatch.setattr("precompute.dubbing.writer.PART_S", 0.5)
    rng = np.random.default_rng(3)
    times_s = [Fraction(int(tick), 15_360) for tick in np.cumsum(rng.integers(100, 3000, 120))]
    source = make_video(tmp_path / "v.mp4", times_s, time_base=Fraction(1, 15_360))
    output, _ = dub(source, "out.mp4")
    wanted = [time_s - times_s[0] for time_s in times_s]  # the source begins with its first picture
    assert times_in(output) == wanted
    output, _ = dub(source, "out.mkv")
    assert np.abs(np.array(times_in(output), float) - np.array(wanted, float)).max() <= 0.00051


def test_speech_in_the_containers_codec_is_copied(tmp_path, rich, dub):
    with av.open(str(tmp_path / "speech.m4a"), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=RATE_HZ)
        stream.layout = "mono"
        container.mux(encode_sound(stream, clicks(0.25, seconds=1.0, channels=1), "mono"))
    speech = SoundFile(tmp_path / "speech.m4a")
    output, _ = dub(rich(), "out.mp4", speech)
    with av.open(str(tmp_path / "speech.m4a")) as one, av.open(str(output)) as other:
        assert [bytes(p) for p in one.demux(audio=0) if p.size] == [bytes(p) for p in other.demux(audio=0) if p.size]
    assert clicks_in(output) == [0.25]
    shifted, _ = dub(rich(), "from.mp4", speech, from_s=0.9)
    assert clicks_in(shifted) == [0.5, 1.15]


def test_a_video_without_sound_gets_a_track(make_video, tmp_path, dub):
    output, _ = dub(make_video(tmp_path / "v.mp4", 50), "out.mp4")
    assert clicks_in(output) == [0.25] and SoundFile(output).duration_s == pytest.approx(2.0, abs=0.03)


def test_names_with_spaces_and_colons(rich, dub):
    output, _ = dub(rich("my: rich video.mp4"), "take: 2 of it.mp4")
    assert len(times_in(output)) == 60


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_hdr_of_ten_bits_keeps_its_colours_in_the_container(tmp_path, make_video, dub, suffix):
    options = {"x265-params": "log-level=error"}
    facts = {"codec": "libx265", "pix_fmt": "yuv420p10le", "colours": (9, 9, 16, 1), "options": options}
    output, _ = dub(make_video(tmp_path / f"v{suffix}", 10, **facts), f"out{suffix}", speech_s=0.3)
    with av.open(str(output)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("hevc", "yuv420p10le")
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (9, 9, 16, 1)
        assert suffix == ".mkv" or context.codec_tag == "hvc1"


@pytest.mark.parametrize(("name", "output"), [("v.mp4", "out.mp4"), ("v.mp4", "out.mkv"), ("v.mkv", "out.mkv")])
def test_the_cover_is_kept(tmp_path, make_video, dub, name, output):
    plain = make_video(tmp_path / "plain.mp4", 30)
    cover = av.CodecContext.create("png", "w")
    cover.width, cover.height, cover.pix_fmt, cover.time_base = 32, 32, "rgb24", Fraction(1, 25)
    image = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 99, np.uint8), format="rgb24")
    (picture,) = [*cover.encode(image), *cover.encode(None)]
    path = tmp_path / name
    with av.open(str(plain)) as source, av.open(str(path), "w") as container:
        video = container.add_stream_from_template(source.streams.video[0], opaque=True)
        if name.endswith(".mkv"):
            container.add_attachment("cover.png", "image/png", bytes(picture))
        else:
            stream = container.add_stream("png", width=32, height=32)
            stream.pix_fmt, stream.disposition = "rgb24", Disposition.attached_pic
            picture.stream, picture.pts, picture.dts = stream, 0, 0
            container.mux(picture)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = video
                container.mux(packet)
    written, remarks = dub(path, output, speech_s=0.5)
    assert remarks == () and len(times_in(written)) == 30
    with av.open(str(written)) as container:
        covers = [s for s in container.streams.video if s.disposition & Disposition.attached_pic]
        assert [bytes(next(container.demux(cover))) for cover in covers] == [bytes(picture)]


def test_fonts_and_cover_of_matroska_are_kept(tmp_path, make_video, dub):
    plain = make_video(tmp_path / "plain.mkv", 30)
    path = tmp_path / "v.mkv"
    with av.open(str(plain)) as source, av.open(str(path), "w") as container:
        video = container.add_stream_from_template(source.streams.video[0], opaque=True)
        container.add_attachment("letters.ttf", "font/ttf", b"letters")
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = video
                container.mux(packet)
    output, remarks = dub(path, "out.mkv")
    with av.open(str(output)) as container:
        assert [(s.metadata["filename"], bytes(s.data)) for s in container.streams.attachments] == [
            ("letters.ttf", b"letters")
        ]
    assert remarks == ()
    _, remarks = dub(path, "out.mp4")
    assert "letters.ttf" in remarks[0].text


def test_the_output_appears_when_it_is_whole(tmp_path, rich, dub, monkeypatch):
    output = tmp_path / "out.mp4"
    dub(rich(), "out.mp4")
    old = output.read_bytes()
    source = Source(rich())
    list(source.pictures())
    speech = write_wave(tmp_path / "speech.wav", clicks(0.25, seconds=1.0, channels=1), RATE_HZ)
    made = plan(source.times, "video", speech_s=1.0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Parts(tmp_path / "parts", made, encoding_of(source, ".mp4")) as parts:
        list(parts.write(picture.frame for _, picture in made.pictures(source)))
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(old) // 2, before[1]))
        try:
            with pytest.raises(OutputError, match="make room"):
                finish(output, source, made, parts, [speech])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert output.read_bytes() == old
        assert len(parts.paths) == 1  # nothing is lost: the same parts can be finished elsewhere
        assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []
        told = []
        finish(output, source, made, parts, [speech], on_progress=lambda *progress: told.append(progress))
    assert told[-1] == (60, 60) and told == sorted(told)
    assert os.path.getsize(output) == pytest.approx(len(old), rel=0.05)
