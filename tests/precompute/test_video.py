"""Any video becomes upright frames at 25 fps from time zero, with the sound on the same time axis."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest

from engine.errors import CorruptVideoError, NotAVideoError
from precompute.video import probe, read_audio, read_frames

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
