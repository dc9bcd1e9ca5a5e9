"""A whole dub: two shots, two faces, 29.97 fps, 5.1 sound, rotated."""

from __future__ import annotations

import gc
import itertools
import json
import subprocess
import sys
from contextlib import contextmanager
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from engine.errors import NoFaceError, OutputError, SettingError
from engine.paint.painter import CpuPainter
from precompute.dubbing.job import Dubbing, Options
from precompute.dubbing.source import Source
from precompute.video import read_audio, read_frames

pytestmark = pytest.mark.slow

RATE = Fraction(30000, 1001)
FIRST_SHOT, SECOND_SHOT = 54, 36  # pictures
WIDTH, HEIGHT = 640, 360  # as displayed; the file has them turned by 90 degrees
QUARTER_TURN = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
HZ = 48_000


def placed(canvas, image, left, side):
    canvas[(HEIGHT - side) // 2 :][:side, left : left + side] = cv2.resize(
        image, (side, side), interpolation=cv2.INTER_AREA
    )


def another_person(image):
    """The speaker with a broad, short, dark face."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    broad = cv2.remap(image, width / 2 + (x - width / 2) * 0.72, height / 2 + (y - height / 2) * 1.05, cv2.INTER_LINEAR)
    return (broad * (0.55, 0.45, 0.4)).astype(np.uint8)


@pytest.fixture(scope="module")
def speaker(speaker_video):
    return list(itertools.islice(read_frames(speaker_video), 80))


@pytest.fixture(scope="module")
def video(speaker, speaker_video, tmp_path_factory):
    """Left the speaker, right a listener; then the speaker alone, in less light."""
    path = tmp_path_factory.mktemp("source") / "two shots.mp4"
    listener = another_person(speaker[0])
    voice = read_audio(speaker_video, HZ)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "16", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.codec_context.time_base = stream.time_base = 1 / RATE
        stream.set_display_matrix(list(QUARTER_TURN))
        sound = container.add_stream("aac", rate=HZ, layout="5.1")
        sound.metadata["language"] = "eng"
        for number in range(FIRST_SHOT + SECOND_SHOT):
            image = np.full((HEIGHT, WIDTH, 3), (120, 130, 140), np.uint8)
            spoken = speaker[round(number / RATE * 25)]
            if number < FIRST_SHOT:
                placed(image, spoken, 10, 300)
                placed(image, listener, 330, 300)
            else:
                image[:] = (30, 40, 60)
                placed(image, (spoken * 0.7).astype(np.uint8), 150, 340)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.rot90(image)), format="rgb24")
            frame.pts, frame.time_base = number, 1 / RATE
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        seconds = float((FIRST_SHOT + SECOND_SHOT) / RATE)
        samples = np.zeros((6, int(seconds * HZ)), np.float32)
        samples[2] = voice[: samples.shape[1]]  # the centre
        for start in range(0, samples.shape[1], 1024):
            block = np.ascontiguousarray(samples[:, start : start + 1024])
            part = av.AudioFrame.from_ndarray(block, format="fltp", layout="5.1")
            part.sample_rate, part.pts, part.time_base = HZ, start, Fraction(1, HZ)
            container.mux(sound.encode(part))
        container.mux(sound.encode(None))
    return path


@pytest.fixture(scope="module")
def speech(speech_wav, tmp_path_factory):
    """A second and a half of speech at 24 kHz, mono."""
    path = tmp_path_factory.mktemp("speech") / "speech: short.wav"
    with av.open(str(speech_wav)) as source, av.open(f"file:{path}", "w", format="wav") as target:
        stream = target.add_stream("pcm_s16le", rate=24_000, layout="mono")
        for frame in source.decode(audio=0):
            if frame.time < 1.5:
                target.mux(stream.encode(frame))
    return path


@pytest.fixture(scope="module")
def dubbed(video, speech, tmp_path_factory):
    """The output, the report, and what was told."""
    output = tmp_path_factory.mktemp("out") / "dubbed.mp4"
    told = []
    options = Options(report=output.with_suffix(".html"))
    dubbing = Dubbing(video, {"auto": speech}, output, options, progress=lambda *step: told.append(step))
    return output, dubbing.run(), told


def pictures_of(path):
    source = Source(path)
    return [(picture.time_s, picture.scaled(source.upright_size)) for picture in source.pictures()]


def test_every_picture_is_there_at_its_time_and_in_its_size(video, dubbed):
    before, after = pictures_of(video), pictures_of(dubbed[0])
    assert [time_s for time_s, _ in after] == [time_s for time_s, _ in before]
    assert after[0][1].shape == (HEIGHT, WIDTH, 3)
    assert Source(dubbed[0]).display.transposed


def test_shots_and_people_are_found_and_the_speaker_is_one_person_in_both(dubbed):
    report = dubbed[1]
    assert [(shot.from_s, len(shot.faces)) for shot in report.shots] == [
        (0, 2),
        (pytest.approx(float(FIRST_SHOT / RATE), abs=0.001), 1),
    ]
    assert report.shots[1].faces == [1]
    assert [face.speaks for face in report.faces] == [["auto"], []]


def test_the_mouth_of_the_speaker_changes_and_nothing_else(video, dubbed):
    before, after = pictures_of(video), pictures_of(dubbed[0])
    changed = np.mean(
        [np.abs(a[1].astype(int) - b[1]).mean(2) for a, b in zip(before, after, strict=True)][:FIRST_SHOT], 0
    )
    mouth, listener, ground = changed[190:290, 110:210], changed[:, 335:630], changed[:25]
    assert np.percentile(mouth, 90) > 5
    assert np.percentile(listener, 99) < 3
    assert ground.max() < 3


def test_the_mouth_closes_where_only_the_original_speaks(dubbed):
    assert dubbed[1].closed > 0
    assert dubbed[1].changed >= dubbed[1].closed


def test_the_sound_is_the_speech_at_its_own_rate_and_layout(dubbed):
    with av.open(str(dubbed[0])) as container:
        (sound,) = container.streams.audio
        assert (sound.rate, sound.layout.name) == (24_000, "mono")


def test_progress_goes_through_the_stages_and_ends(dubbed):
    stages = list(dict.fromkeys(stage for stage, *_ in dubbed[2]))
    assert stages == ["faces", "people", "references", "pictures", "file"]
    assert dubbed[2][-1][:3] == ("file", FIRST_SHOT + SECOND_SHOT, FIRST_SHOT + SECOND_SHOT)
    assert any(left_s is not None for *_, left_s in dubbed[2])


def test_the_page_shows_faces_pairs_and_shots(dubbed):
    page = dubbed[0].with_suffix(".html").read_text("utf-8")
    assert page.count("<figcaption>") == 2
    assert page.count("data:image/jpeg") >= 6
    assert page.count("<tr>") == 3
    assert "$" not in page


def test_nothing_is_left_beside_the_output(dubbed):
    assert sorted(path.name for path in dubbed[0].parent.iterdir()) == ["dubbed.html", "dubbed.mp4"]


def test_a_face_that_does_not_exist_is_refused_with_those_that_do(video, speech, tmp_path):
    with pytest.raises(SettingError, match=r"face 7: the video shows the faces 1 \(.*\), 2 \(.*\)"):
        Dubbing(video, {"7": speech}, tmp_path / "out.mp4").run()
    assert not list(tmp_path.glob("*.mp4"))


def test_only_the_passage_changes(video, speech, tmp_path):
    output = tmp_path / "passage.mp4"
    report = Dubbing(video, {"2": speech}, output, Options(from_s=0.5, to_s=1.2, length="cut")).run()
    assert report.faces[1].speaks == ["2"]
    assert report.faces[0].changed == 0
    before, after = pictures_of(video), pictures_of(output)
    for (time_s, one), (_, other) in zip(before, after, strict=False):
        if not 0.5 <= time_s < 1.2:
            assert np.abs(one.astype(int) - other)[:, 335:630].mean() < 1.5


@pytest.mark.parametrize("length", ["loop", "bounce"])
def test_pictures_repeat_until_longer_speech_ends(video, speech, tmp_path, length):
    options, alive = Options(length=length, from_s=1.0, to_s=1.6), []

    def count(stage, *_):
        if stage == "pictures":
            alive.append(painters_alive() - before)

    gc.collect()
    before = painters_alive()
    gc.disable()
    try:
        report = Dubbing(video, {"1": speech}, tmp_path / "there and back.mp4", options, progress=count).run()
    finally:
        gc.enable()
    assert 0 < max(alive) <= 2, "those of earlier passages are freed"
    longer_s = 1.5 - 0.6
    assert report.seconds == pytest.approx(float((FIRST_SHOT + SECOND_SHOT) / RATE) + longer_s, abs=0.1)
    assert report.changed > RATE


def painters_alive():
    return sum(type(found) is CpuPainter for found in gc.get_objects())


def test_an_off_screen_voice_moves_nobody(speaker, speech, write_video, tmp_path):
    listener = another_person(speaker[0])
    path = write_video(tmp_path / "listener.mp4", [np.roll(listener, n % 3, 1) for n in range(50)])
    told = []
    report = Dubbing(path, {"auto": speech}, tmp_path / "out.mp4", on_remark=told.append).run()
    assert report.changed == 0
    assert [remark.code for remark in told] == ["off-screen"]
    assert Source(tmp_path / "out.mp4").has_sound


def test_a_video_without_a_face_is_refused(write_video, speech, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (30, 120, 160, 3), np.uint8)
    path = write_video(tmp_path / "noise.mp4", list(noise))
    with pytest.raises(NoFaceError, match="no face was found"):
        Dubbing(path, {"auto": speech}, tmp_path / "out.mp4", Options(length="cut")).run()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["noise.mp4"]


def test_speech_that_is_longer_than_the_video_is_refused_before_any_work(video, speech_wav, tmp_path):
    with pytest.raises(SettingError, match="--length"):
        Dubbing(video, {"auto": speech_wav}, tmp_path / "out.mp4")


@pytest.mark.parametrize("name", ["two shots.mp4", "out.gif", "speech: short.wav"])
def test_outputs_that_cannot_be_are_refused_before_any_work(video, speech, name):
    with pytest.raises(OutputError):
        Dubbing(video, {"auto": speech}, (speech if name.endswith("wav") else video).with_name(name))


@contextmanager
def child(job):
    """The process that dubs, with its job."""
    command = [sys.executable, "-m", "precompute.dubbing"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        yield process


def run_child(job, *, kill_at=None):
    """The exit code and the events of the process that dubs; it is killed at its first progress in that stage."""
    events = []
    with child(job) as process:
        for line in process.stdout:
            events.append(json.loads(line))
            if kill_at and events[-1].get("stage") == kill_at:
                process.kill()
    return process.returncode, events


def test_a_killed_run_goes_on_with_what_it_had(video, speech, dubbed, tmp_path):
    job = {"video": str(video), "speech": {"auto": str(speech)}, "output": str(tmp_path / "out.mp4")}
    code, _ = run_child(job, kill_at="people")
    assert code < 0
    assert not (tmp_path / "out.mp4").exists()
    assert (tmp_path / "out.mp4.parts").is_dir()
    code, events = run_child(job | {"options": {"resume": True}})
    assert code == 0
    faces = [event for event in events if event.get("stage") == "faces"]
    assert len(faces) == 1  # found by the first run
    report = events[-1]["report"]
    assert report["changed"] == dubbed[1].changed
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_an_error_of_the_process_is_one_event(tmp_path, speech):
    job = {"video": str(tmp_path / "missing.mp4"), "speech": {"auto": str(speech)}, "output": str(tmp_path / "out.mp4")}
    code, events = run_child(job)
    assert code == 2
    assert [event["event"] for event in events] == ["error"]
    assert events[0]["code"] == "not-a-video"


def test_the_process_ends_with_its_parent(video, speech, tmp_path):
    job = {"video": str(video), "speech": {"auto": str(speech)}, "output": str(tmp_path / "out.mp4")}
    with child(job) as process:
        process.stdout.readline()  # it is at work
        process.stdin.close()
        assert process.wait(timeout=60) == 130
    assert not (tmp_path / "out.mp4").exists()
