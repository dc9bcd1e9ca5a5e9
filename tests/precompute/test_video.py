"""Any video becomes upright frames at 25 fps from time zero, with the sound on the same time axis."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest

from engine.errors import CorruptVideoError, NotAVideoError
from precompute.video import probe, read_audio, read_frames


def tag_matrix(path, values):
    """Write a display matrix (a, b, c, d), each 0, 1 or -1, into the track header of an MP4 file, in place."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4
    matrix = start + (40 if data[start] == 0 else 52)
    for place, value in zip((0, 1, 3, 4), values, strict=True):
        data[matrix + 4 * place : matrix + 4 * place + 4] = (value << 16).to_bytes(4, "big", signed=True)
    path.write_bytes(data)


HEIGHT, WIDTH = 96, 160


def clock(count, fps):
    """Frames whose grey level tells their time: 50 levels a second."""
    return [np.full((HEIGHT, WIDTH, 3), round(20 + 50 * n / fps), np.uint8) for n in range(count)]


def times_of(frames):
    return np.array([(float(frame.mean()) - 20) / 50 for frame in frames])


@pytest.mark.parametrize("fps", [24, 25, 30, 50, 60, Fraction(30000, 1001)])
def test_any_frame_rate_becomes_25(tmp_path, write_video, fps):
    count = round(3 * fps)
    frames = list(read_frames(write_video(tmp_path / "v.mp4", clock(count, float(fps)), fps=fps)))
    assert abs(len(frames) - 75) <= 1
    late = times_of(frames) - np.arange(len(frames)) / 25
    assert np.abs(late).max() < 0.5 / float(fps) + 0.03  # the nearest source frame, and a grey level of rounding


def test_variable_frame_rate_keeps_time(tmp_path, write_video):
    times_s = [*np.arange(0, 1, 1 / 30), *np.arange(1, 2, 1 / 10), *np.arange(2, 3.01, 1 / 60)]
    images = [np.full((HEIGHT, WIDTH, 3), round(20 + 50 * t), np.uint8) for t in times_s]
    path = write_video(tmp_path / "v.mp4", images, fps=30, times_s=times_s)
    frames = list(read_frames(path))
    assert abs(len(frames) - 75) <= 1
    assert np.abs(times_of(frames) - np.arange(len(frames)) / 25).max() < 0.07


def test_the_length_of_a_recording_without_one_in_its_header_is_counted(tmp_path):
    """As MediaRecorder writes WebM."""
    path = tmp_path / "camera.webm"
    with av.open(str(path), "w", options={"live": "1"}) as writer:
        stream = writer.add_stream("libvpx", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for image in clock(50, 25):
            writer.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        writer.mux(stream.encode(None))
    with av.open(str(path)) as reader:
        assert not reader.duration
    info = probe(path)
    assert abs(info.duration_s - 2.0) < 0.1 and info.video_s == 0
    assert len(list(read_frames(path))) == 50


@pytest.mark.parametrize("start_s", [0.5, 2.0])
def test_a_video_that_starts_late_starts_at_its_first_frame(tmp_path, write_video, start_s):
    times_s = [start_s + n / 25 for n in range(50)]
    path = write_video(tmp_path / "v.mp4", clock(50, 25), times_s=times_s)
    frames = list(read_frames(path))
    assert len(frames) == 50
    assert abs(times_of(frames)[0]) < 0.03


def corner_marked():
    """A frame whose upper left quarter is red and whose lower right quarter is blue."""
    image = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    image[: HEIGHT // 2, : WIDTH // 2] = (220, 20, 20)
    image[HEIGHT // 2 :, WIDTH // 2 :] = (20, 20, 220)
    return image


@pytest.mark.parametrize(("degrees", "turns"), [(0, 0), (90, -1), (180, 2), (270, 1)])
def test_a_rotated_video_is_shown_upright(tmp_path, write_video, degrees, turns):
    path = write_video(tmp_path / "v.mp4", [corner_marked()] * 5, rotation=degrees)
    wanted = np.rot90(corner_marked(), turns)
    info, frame = probe(path), next(iter(read_frames(path)))
    assert frame.shape == wanted.shape == (info.height, info.width, 3)
    assert np.abs(frame.astype(int) - wanted).mean() < 6
    assert frame.flags.c_contiguous


def test_frames_can_be_scaled_on_the_way_also_when_rotated(tmp_path, write_video):
    path = write_video(tmp_path / "v.mp4", [corner_marked()] * 3, rotation=90)
    frame = next(iter(read_frames(path, size=(48, 80))))
    assert frame.shape == (80, 48, 3)
    assert frame[10, 38, 0] > 180  # red has moved to the upper right


def test_wide_pixels_are_made_square(tmp_path):
    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        for image in clock(5, 25):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    assert probe(path).width == 2 * WIDTH
    assert next(iter(read_frames(path))).shape == (HEIGHT, 2 * WIDTH, 3)


def test_a_text_file_is_not_a_video(tmp_path):
    path = tmp_path / "speaker.mp4"
    path.write_text("this is not a video\n" * 100)
    with pytest.raises(NotAVideoError, match="cannot be read as a video"):
        probe(path)


def test_a_missing_file_and_a_folder_are_not_videos(tmp_path):
    with pytest.raises(NotAVideoError, match="no such file"):
        probe(tmp_path / "nothing.mp4")
    with pytest.raises(NotAVideoError):
        probe(tmp_path)


def test_sound_alone_is_not_a_video(tmp_path):
    path = write_sound(tmp_path / "a.mp4", np.zeros(16_000, np.float32))
    with pytest.raises(NotAVideoError, match="no video stream"):
        probe(path)


def test_a_file_without_its_index_is_corrupt(tmp_path, write_video):
    path = write_video(tmp_path / "v.mp4", clock(50, 25))
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(CorruptVideoError, match="cut off"):
        probe(path)


# ---- orientation, colours, time, interlacing, tracks


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("across", [1, -1])
@pytest.mark.parametrize("down", [1, -1])
def test_every_display_matrix_is_applied_whole(tmp_path, write_video, transposed, across, down):
    """x' = a x + c y, y' = b x + d y: `across` and `down` are the signs of the new axes."""
    path = write_video(tmp_path / "v.mp4", [corner_marked()] * 3)
    tag_matrix(path, (0, down, across, 0) if transposed else (across, 0, 0, down))
    wanted = corner_marked().transpose(1, 0, 2) if transposed else corner_marked()
    wanted = wanted[::down, ::across]
    frame = next(iter(read_frames(path)))
    assert frame.shape == wanted.shape and np.abs(frame.astype(int) - wanted).mean() < 6


COLOURS = np.array([(200, 40, 60), (40, 160, 70), (50, 70, 190), (235, 235, 235), (128, 128, 128)], np.uint8)


def patches(height=96):
    return np.repeat(np.repeat(COLOURS[None], height, 0), 32, 1)


def write_coloured(path, image, *, matrix, tagged=True, full=False, size=None):
    """A lossless video whose 4:4:4 planes were computed with `matrix` (the luma weights of red and blue)."""
    red, blue = matrix
    image = image if size is None else np.repeat(np.repeat(image, size, 0), size, 1)
    r, g, b = np.moveaxis(image.astype(float), -1, 0) / 255
    luma = red * r + (1 - red - blue) * g + blue * b
    cb, cr = (b - luma) / (2 - 2 * blue), (r - luma) / (2 - 2 * red)
    scale, offset = ((255, 255), 0) if full else ((219, 224), 16)
    planes = [luma * scale[0] + offset, cb * scale[1] + 128, cr * scale[1] + 128]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"qp": "0", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = *image.shape[:2], "yuv444p"
        if tagged:
            stream.codec_context.colorspace = {0.2126: 1, 0.299: 6, 0.2627: 9}[red]
        stream.codec_context.color_range = 2 if full else 1
        frame = av.VideoFrame.from_ndarray(np.rint(np.stack(planes)).astype(np.uint8), format="yuv444p")
        for number in range(3):
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("matrix", "tagged", "size"),
    [
        ((0.2126, 0.0722), True, None),
        ((0.299, 0.114), True, None),
        ((0.2627, 0.0593), True, None),
        ((0.299, 0.114), False, None),  # SD without a name
        ((0.2126, 0.0722), False, 8),  # HD without a name
    ],
)
@pytest.mark.parametrize("full", [False, True])
def test_colours_are_those_of_the_source_within_two_levels(tmp_path, matrix, tagged, size, full):
    path = write_coloured(tmp_path / "v.mkv", patches(), matrix=matrix, tagged=tagged, full=full, size=size)
    frame, step = next(iter(read_frames(path))), 32 * (size or 1)
    seen = frame[frame.shape[0] // 2, step // 2 :: step].astype(int)
    assert np.abs(seen - COLOURS).max() <= 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("transfer", "white"),
    [(16, 0.5807), (18, 0.75)],  # PQ and HLG: the signals of reference white, 203 cd/m2
)
def test_hdr_is_mapped_with_reference_white_as_white(tmp_path, transfer, white):
    path = tmp_path / "hdr.mkv"
    greys = np.array([0.25, 0.45, 1.0]) * white
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=25, options={"x265-params": "lossless=1:log-level=none"})
        stream.height, stream.width, stream.pix_fmt = 96, 96, "yuv420p10le"
        codec = stream.codec_context
        codec.colorspace, codec.color_primaries, codec.color_trc, codec.color_range = 9, 9, transfer, 1
        luma = np.repeat(np.repeat(np.rint(64 + 876 * greys).astype("<u2")[None], 96, 0), 32, 1)
        frame = av.VideoFrame(96, 96, "yuv420p10le")
        for plane, values in zip(frame.planes, [luma, np.full((48, 48), 512, "<u2")] * 2, strict=False):
            rows = np.zeros((plane.height, plane.line_size // 2), "<u2")
            rows[:, : plane.width] = values[: plane.height, : plane.width]
            plane.update(rows.tobytes())
        chroma = np.full(frame.planes[2].buffer_size // 2, 512, "<u2")
        frame.planes[2].update(chroma.tobytes())
        frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range = 9, 9, transfer, 1
        for number in range(3):
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert probe(path).wide_colours
    dark, grey, bright = next(iter(read_frames(path)))[48, 16::32].astype(int)
    assert np.ptp(bright) <= 2 and bright.min() >= 250
    assert dark.max() < grey.min() < 200


def gapped(path, write_video, seconds):
    """50 frames of a clock, then 50 behind a jump of the time stamps."""
    times_s = [n / 25 for n in range(50)] + [2 + seconds + n / 25 for n in range(50)]
    return write_video(path, clock(100, 25), times_s=times_s)


@pytest.mark.parametrize("gap_s", [2.0, 27.0, 4000.0])
def test_a_jump_of_the_time_stamps_costs_no_time_and_is_told(tmp_path, write_video, gap_s):
    jumps = []
    path = gapped(tmp_path / "v.mp4", write_video, gap_s)
    frames = list(read_frames(path, on_jump=lambda *jump: jumps.append(jump)))
    assert len(frames) == pytest.approx(100, abs=1)
    assert [n for n, _ in jumps] == [50] and jumps[0][1] == pytest.approx(gap_s, abs=0.1)


def transport_stream(path, write_video, tmp_path, *, offsets_s):
    """Pieces of 25 frames in one MPEG-TS, each with its time stamps from its offset on."""
    data = b""
    for number, offset_s in enumerate(offsets_s):
        piece = tmp_path / f"{number}.ts"
        with av.open(str(piece), "w", format="mpegts") as container:
            stream = container.add_stream("libx264", rate=25, options={"bf": "0"})
            stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
            for n, image in enumerate(clock(25, 25)):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.time_base, frame.pts = Fraction(1, 25), n + round(offset_s * 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        data += piece.read_bytes()
    path.write_bytes(data)
    return path


def test_a_jump_backwards_loses_nothing(tmp_path, write_video):
    jumps = []
    path = transport_stream(tmp_path / "v.ts", write_video, tmp_path, offsets_s=(100, 20, 60))
    frames = list(read_frames(path, on_jump=lambda *jump: jumps.append(jump)))
    assert len(frames) == pytest.approx(75, abs=1)
    assert [n for n, _ in jumps] == [25, 50]


@pytest.mark.parametrize("wrong_s", [9.0, -0.9])
def test_a_single_wrong_time_stamp_is_repaired(tmp_path, write_video, wrong_s):
    jumps, times_s = [], [1 + n / 25 for n in range(75)]
    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)  # packets need no order
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuvj420p"
        times_s[30] += wrong_s
        for number, image in enumerate(clock(75, 25)):
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuvj420p")):
                packet.time_base = Fraction(1, 1000)
                packet.pts, packet.dts = round(times_s[number] * 1000), number * 40
                container.mux(packet)
    frames = list(read_frames(path, on_jump=lambda *jump: jumps.append(jump)))
    assert len(frames) == pytest.approx(75, abs=1) and jumps == []
    assert np.abs(times_of(frames) - np.arange(len(frames)) / 25).max() < 0.07


@pytest.mark.parametrize("suffix", ["h264", "264"])
def test_a_raw_stream_without_time_stamps_is_read(tmp_path, write_video, suffix):
    path = tmp_path / f"v.{suffix}"
    with av.open(str(path), "w", format="h264") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for image in clock(50, 25):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    frames = list(read_frames(path))
    assert len(frames) == pytest.approx(50, abs=1)
    assert np.abs(times_of(frames) - np.arange(len(frames)) / 25).max() < 0.07


@pytest.mark.parametrize("flagged", [True, False])
@pytest.mark.parametrize("first", [0, 1])
def test_combs_are_removed_whether_they_are_flagged_or_not(tmp_path, flagged, first):
    """A bar that moves 8 px from field to field, woven into frames."""
    rng = np.random.default_rng(0)
    texture = np.repeat(np.repeat(rng.integers(60, 200, (12, 20), np.uint8), 8, 0), 8, 1)

    def picture(field):
        image = texture.copy()
        image[:, 8 * field % 120 : 8 * field % 120 + 24] = 250
        return image

    path = tmp_path / "v.mkv"
    options = {"qp": "4"} | ({"x264opts": "tff=1" if first == 0 else "bff=1"} if flagged else {})
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = 96, 160, "yuv420p"
        for number in range(40):
            grey = np.empty((96, 160), np.uint8)
            grey[first::2], grey[1 - first :: 2] = (
                picture(2 * number)[first::2],
                picture(2 * number + 1)[1 - first :: 2],
            )
            image = np.repeat(grey[..., None], 3, -1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))

    frames = list(read_frames(path))
    assert len(frames) == pytest.approx(40, abs=1)
    grey = np.array(frames[5:-5])[..., 1].astype(float)
    combs = np.abs(2 * grey[:, 1:-1] - grey[:, :-2] - grey[:, 2:]).mean()
    assert combs < 12, combs


def test_progressive_film_is_left_as_it_is(tmp_path, write_video):
    stripes = [np.roll(np.repeat((np.arange(96) % 2 * 80 + 80)[:, None, None], 160, 1), n, 0) for n in range(40)]
    images = [np.repeat(stripe, 3, 2).astype(np.uint8) for stripe in stripes[:1] * 40]
    frame = list(read_frames(write_video(tmp_path / "v.mp4", images, options={"qp": "0"})))[10]
    assert np.abs(np.diff(frame[..., 1].astype(int), axis=0)).mean() > 60


def test_a_small_preview_as_the_first_track_is_passed_over(tmp_path):
    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as container:
        streams = []
        for height, width in ((48, 80), (HEIGHT, WIDTH)):
            stream = container.add_stream("libx264", rate=25)
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            streams.append(stream)
        for stream in streams:
            for _ in range(10):
                image = np.full((stream.height, stream.width, 3), 99, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))
    assert probe(path).width == WIDTH
    frames = list(read_frames(path))
    assert len(frames) == 10 and frames[0].shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("name", ["take:2.mp4", "-v.mp4", "a b'\"$(&)%03d.mp4"])
def test_any_name_is_read(tmp_path, write_video, monkeypatch, name):
    write_video(tmp_path / "v.mp4", clock(5, 25)).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert probe(type(tmp_path)(name)).width == WIDTH and len(list(read_frames(type(tmp_path)(name)))) == 5


def write_sound(path, samples, *, rate_hz=16_000, start_s=0.0, images=None, codec="aac"):
    """A file with sound that starts `start_s` after the picture (before it, if negative)."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25) if images else None
        sound = container.add_stream(codec, rate=rate_hz, layout="mono")
        if video:
            video.height, video.width = images[0].shape[:2]
            video.pix_fmt = "yuv420p"
            for number, image in enumerate(images):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.time_base = Fraction(1, 1000)
                frame.pts = round(1000 * (number / 25 + max(0.0, -start_s)))
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate, frame.time_base = rate_hz, Fraction(1, rate_hz)
        frame.pts = round(max(0.0, start_s) * rate_hz)
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    return path


@pytest.mark.parametrize("start_s", [-0.48, -0.12, 0.0, 0.1234, 0.75])
@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "pcm_s16le"), ("mp4", "aac")])
def test_the_offset_between_sound_and_picture_is_respected_within_a_millisecond(tmp_path, start_s, suffix, codec):
    rate_hz, click_s = 16_000, 0.6
    samples = np.zeros(2 * rate_hz, np.float32)
    samples[round(click_s * rate_hz) :][:160] = np.sin(np.arange(160)) * np.hanning(160)
    path = write_sound(tmp_path / f"v.{suffix}", samples, start_s=start_s, images=clock(50, 25), codec=codec)
    sound = read_audio(path, rate_hz)
    weight = sound.astype(float) ** 2
    centre_s = float((np.arange(len(sound)) * weight).sum() / weight.sum()) / rate_hz
    assert centre_s == pytest.approx(click_s + 80 / rate_hz + start_s, abs=0.001)


def test_a_silent_film_has_no_sound(tmp_path, write_video):
    path = write_video(tmp_path / "v.mp4", clock(10, 25))
    assert not probe(path).has_audio
    assert read_audio(path, 16_000) is None
