"""From a video file to an avatar file, or to a typed error that says what is wrong and where."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import zipfile

import cv2
import numpy as np
import pytest
import torch
from rich.console import Console

from engine.avatar.avatar import Avatar
from engine.backends.cpu import CpuBackend
from engine.errors import (
    ClipTooShortError,
    CorruptVideoError,
    FaceTooSmallError,
    NoFaceError,
    NotAVideoError,
    OutputError,
    SettingError,
    SeveralFacesError,
)
from engine.models.geometry import GeometryConfig, GeometryGenerator
from engine.models.morphable import mouth_opening
from engine.models.renderer import DualAttentionRenderer, RendererConfig
from engine.models.speech import SpeechConfig, SpeechEncoder
from engine.models.weights import load_face_model
from precompute.command import Precompute, run
from precompute.enrolment import STAGES, Enrolment, EnrolmentOptions
from precompute.frame_size import base_size

NETWORKS = {"face_model": "f" * 16, "geometry": "a" * 16, "renderer": "b" * 16}


@pytest.fixture(scope="module")
def backend():
    """Untrained networks: their pictures do not matter here."""
    torch.manual_seed(0)
    lower = int(load_face_model().lower.sum())
    geometry = GeometryGenerator(GeometryConfig(lower_vertices=lower))
    parts = SpeechEncoder(SpeechConfig()), geometry, DualAttentionRenderer(RendererConfig())
    return CpuBackend(*(part.eval() for part in parts))


@pytest.fixture
def refused(tmp_path, backend):
    """refused(video, error): the error that enrolment ends with, after checking that nothing was left behind."""

    def run(video, error):
        output = tmp_path / "out" / "x.avatar"
        output.parent.mkdir()
        with pytest.raises(error) as caught:
            Enrolment(video, output, backend=backend, networks=NETWORKS).run()
        assert list(output.parent.iterdir()) == []
        return caught.value

    return run


def on_canvas(frames, size, places, scale=1.0):
    """Every frame scaled and put at each of `places` (left, top) on a grey picture of `size` (width, height)."""
    pictures = []
    for frame in frames:
        small = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        canvas = np.full((size[1], size[0], 3), 110, np.uint8)
        for left, top in places:
            canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
        pictures.append(canvas)
    return pictures


def test_noise_is_refused_for_want_of_a_face(tmp_path, write_video, refused):
    rng = np.random.default_rng(0)
    noise = [cv2.resize(rng.integers(0, 256, (12, 16, 3), np.uint8), (320, 240)) for _ in range(55)]
    error = refused(write_video(tmp_path / "noise.mp4", noise), NoFaceError)
    assert "film one person from the front" in str(error)
    assert error.at_s == 0


def test_two_faces_side_by_side_are_refused(tmp_path, write_video, face_frames, refused):
    frames = on_canvas(face_frames[:55], (720, 360), [(0, 0), (360, 0)])
    error = refused(write_video(tmp_path / "two.mp4", frames), SeveralFacesError)
    assert "crop or cut" in str(error)


def test_a_face_of_80_pixels_is_refused_with_its_height(tmp_path, write_video, face_frames, refused):
    frames = on_canvas(face_frames[:55], (640, 360), [(250, 110)], scale=80 / 180)
    error = refused(write_video(tmp_path / "small.mp4", frames), FaceTooSmallError)
    height = int(re.search(r"(\d+) px high", str(error)).group(1))
    assert 65 <= height <= 95


@pytest.mark.slow
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_face_that_is_turned_in_its_pixels_is_hinted_at(tmp_path, write_video, face_frames, turns):
    """Refused or remarked, as the tracker finds the face or not; either way with the remedy."""
    frames = [np.ascontiguousarray(np.rot90(frame, turns)) for frame in face_frames[:55]]
    enrolment = Enrolment(write_video(tmp_path / "v.mp4", frames), tmp_path / "x.avatar", networks=NETWORKS)
    try:
        told = " ".join(remark.text for remark in enrolment.assess(enrolment.scan()).remarks)
    except NoFaceError as error:
        told = str(error)
    assert f"turn the video clockwise by {90 * turns}°" in told


def test_a_gap_in_the_time_stamps_is_neither_shown_nor_taken_for_a_file_that_ends_early(
    tmp_path, write_video, face_frames, backend
):
    times_s = [n / 25 for n in range(40)] + [30 + n / 25 for n in range(55)]
    frames = [*face_frames[:40], *face_frames[:55]]
    video = write_video(tmp_path / "v.mp4", frames, times_s=times_s)
    enrolment = Enrolment(video, tmp_path / "x.avatar", backend=backend, networks=NETWORKS)
    clip = enrolment.scan()
    assessment = enrolment.assess(clip)
    assert len(clip) == pytest.approx(95, abs=1) and assessment.use.start == 40
    assert "time-jump" in {remark.code for remark in assessment.remarks}


def blended(one, other, shares):
    return [
        np.rint(a * (1 - share) + b * share).astype(np.uint8) for a, b, share in zip(one, other, shares, strict=True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("transition", ["dissolve", "wipe", "fade through black", "zoom"])
def test_a_slow_transition_never_makes_one_avatar_of_two_people(
    tmp_path, write_video, face_frames, backend, transition
):
    """The other person is the first as a negative; 90 frames of each, and 30 in which one becomes the other."""
    one = [*face_frames, *face_frames[74:29:-1]]
    two, share = [np.ascontiguousarray(255 - frame[:, ::-1]) for frame in one], np.linspace(0, 1, 30)
    middle = blended(one[90:], two[:30], share)
    if transition == "wipe":
        line = np.arange(360)[None, :, None]
        middle = [np.where(line < 360 * a, new, old) for old, new, a in zip(one[90:], two[:30], share, strict=True)]
    elif transition == "zoom":
        cuts = (50 * share).astype(int)
        middle = [
            cv2.resize(frame[cut : 360 - cut, cut : 360 - cut], (360, 360))
            for cut, frame in zip(cuts, middle, strict=True)
        ]
    elif transition == "fade through black":
        black = [np.zeros_like(one[0])] * 15
        middle = [*blended(one[90:105], black, share[::2]), *blended(black, two[15:30], share[::2])]
    video = write_video(tmp_path / "v.mp4", [*one[:90], *middle, *two[30:]])
    enrolment = Enrolment(video, tmp_path / "x.avatar", backend=backend, networks=NETWORKS)
    use = enrolment.assess(enrolment.scan()).use
    assert use.stop <= 96 or use.start >= 114


def test_a_clip_of_one_second_is_refused(tmp_path, write_video, face_frames, refused):
    refused(write_video(tmp_path / "short.mp4", face_frames[:25]), ClipTooShortError)


def test_a_text_file_is_refused_as_no_video(tmp_path, refused):
    path = tmp_path / "speaker.mp4"
    path.write_text("To be, or not to be\n" * 50)
    refused(path, NotAVideoError)


def test_a_file_that_ends_early_is_corrupt_and_says_where(tmp_path, write_video, face_frames, refused):
    path = write_video(tmp_path / "cut.mp4", face_frames)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    error = refused(path, CorruptVideoError)
    assert 0.5 < error.at_s < 2.5


def test_an_output_that_cannot_be_written_is_refused_before_any_work(tmp_path, backend):
    with pytest.raises(OutputError, match="no folder"):
        Enrolment(tmp_path / "v.mp4", tmp_path / "nowhere" / "x.avatar", backend=backend)
    with pytest.raises(OutputError, match="cannot be written"):
        Enrolment(tmp_path / "v.mp4", tmp_path, backend=backend)


@pytest.mark.parametrize(
    ("source", "face_px", "keep", "size"),
    [
        ((640, 360), 200, False, (640, 360)),
        ((1920, 1080), 400, False, (1280, 720)),
        ((1080, 1920), 400, False, (720, 1280)),
        ((1920, 1080), 400, True, (1920, 1080)),
        ((3840, 2160), 240, False, (1958, 1102)),  # a third of it would leave 80 px of face
        ((853, 479), 200, False, (852, 480)),
    ],
)
def test_large_videos_are_scaled_down_but_never_the_face_below_its_least_size(source, face_px, keep, size):
    assert base_size(*source, face_px, keep_size=keep) == size


def test_a_device_that_is_not_there_is_refused_before_any_work(tmp_path, write_video, face_frames):
    video = write_video(tmp_path / "talk.mp4", face_frames[:5])
    with pytest.raises(SettingError, match="--device gpu; expected auto, cpu, cuda or cuda:N"):
        Enrolment(video, tmp_path / "talk.avatar", EnrolmentOptions(device="gpu"))


def test_the_video_is_never_overwritten_by_its_avatar(tmp_path, backend):
    video = tmp_path / "v.mp4"
    video.write_bytes(b"precious")
    with pytest.raises(OutputError, match="is the video itself"):
        Enrolment(video, video, backend=backend)
    assert video.read_bytes() == b"precious"


@pytest.fixture(scope="module")
def enrolled(tmp_path_factory, write_video, face_frames, backend):
    """An avatar from 2.4 s of the speaker after 0.6 s of something else, without sound, at an odd rate."""
    folder = tmp_path_factory.mktemp("enrolled")
    other = [np.full_like(face_frames[0], (200, 180, 40))] * 18
    video = write_video(folder / "two shots.mp4", [*other, *face_frames[:72]], fps=30)
    stages = []
    result = Enrolment(
        video,
        folder / "Ms. Speaker.avatar",
        EnrolmentOptions(consent="a <b>synthetic</b> person"),
        backend=backend,
        networks=NETWORKS,
        progress=lambda stage, done, total: stages.append((stage, done, total)),
    ).run()
    return result, Avatar.open(result.path, networks=NETWORKS), stages


def test_the_longest_usable_shot_becomes_the_avatar(enrolled):
    result, avatar, _ = enrolled
    assert avatar.frames == pytest.approx(60, abs=1)
    assert result.assessment.use.start == pytest.approx(15, abs=1)
    assert (avatar.width, avatar.height, avatar.name) == (360, 360, "Ms. Speaker")
    codes = {remark.code for remark in result.assessment.remarks}
    assert {"part", "short", "silent"} <= codes


def test_tracks_fit_the_face(enrolled):
    result, avatar, _ = enrolled
    quality = avatar.manifest.summary
    assert quality["error_px"] < 1.5
    assert quality["lip_error_px"] < 1.5
    assert avatar.alpha.shape[0] == avatar.frames == len(result.fit.error_px)
    assert 0 <= avatar.loop.start < avatar.loop.stop <= avatar.frames


def test_idle_has_the_same_frames_and_is_the_base_video_outside_the_lower_face(enrolled):
    _, avatar, _ = enrolled
    with avatar.open_base() as base, avatar.open_idle() as idle:
        for index in (0, 30, avatar.frames - 1):
            _, top, size = avatar.crop[index].tolist()
            difference = np.abs(base.read(index).astype(int) - idle.read(index))
            upper = difference[: max(1, top + size // 4)]
            assert np.percentile(upper, 99) <= 6


def test_the_resting_mouth_is_closed(enrolled):
    _, avatar, _ = enrolled
    model = load_face_model()
    rest = mouth_opening(model.vertices(avatar.alpha.mean(0), avatar.rest_beta))
    assert rest < 0.03


def test_the_bank_runs_from_closed_to_open_lips(enrolled):
    _, avatar, _ = enrolled
    model = load_face_model()
    opening = mouth_opening(model.vertices(avatar.bank.alpha, avatar.bank.beta))
    assert len(opening) == 25
    assert bool((opening.diff() >= 0).all())
    assert torch.equal(avatar.bank.beta, avatar.beta[avatar.bank.frames.long()])


def test_the_report_is_one_page_without_outside_parts(enrolled):
    _, avatar, _ = enrolled
    page = avatar.report_html()
    assert "a &lt;b&gt;synthetic&lt;/b&gt; person" in page
    assert re.findall(r'(?:src|href)="(?!data:image/)', page) == []
    assert "<script" not in page
    assert "url(" not in page
    for remark in enrolled[0].assessment.remarks:
        assert remark.text[1:20] in page


def test_progress_reaches_the_end_of_every_stage_in_order(enrolled):
    result, _, stages = enrolled
    assert tuple(dict.fromkeys(stage for stage, _, _ in stages)) == tuple(result.stage_s) == STAGES
    last = {stage: (done, total) for stage, done, total in stages}
    assert all(done == total for done, total in last.values())


@pytest.mark.slow
def test_an_interruption_leaves_the_old_file_and_nothing_else(tmp_path, write_video, face_frames, backend, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "scratch").mkdir()
    video, output = write_video(tmp_path / "v.mp4", face_frames[:55]), tmp_path / "x.avatar"
    output.write_bytes(b"PK\3\4 the old one")

    def interrupt(stage, done, total):
        if stage == "idle":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Enrolment(video, output, backend=backend, networks=NETWORKS, progress=interrupt).run()
    assert output.read_bytes() == b"PK\3\4 the old one"
    assert list((tmp_path / "scratch").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scratch", "v.mp4", "x.avatar"]


def test_the_command_prints_one_line_for_an_unusable_video_and_exits_with_2(tmp_path):
    path = tmp_path / "speaker [bold].mp4"
    path.write_text("no video")
    printed = io.StringIO()
    assert run(Precompute(video=path), Console(file=printed)) == 2
    line = printed.getvalue().strip()
    assert "\n" not in line
    assert line.startswith("not-a-video: ")
    assert str(path) in line
    assert not list(tmp_path.glob("*.avatar"))


@pytest.mark.slow
def test_the_command_starts_and_ends_without_a_traceback(tmp_path):
    command = [sys.executable, "-m", "precompute", str(tmp_path / "missing.mp4")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().startswith("not-a-video: ")
    assert "Traceback" not in done.stderr


def test_the_manifest_says_where_the_avatar_came_from(enrolled):
    result, avatar, _ = enrolled
    with zipfile.ZipFile(result.path) as archive:
        manifest = json.loads(archive.read("manifest.json"))
    assert manifest["networks"] == NETWORKS
    assert re.fullmatch(r"[0-9a-f]{64}", manifest["source_sha256"])
    assert manifest["consent"] == "a <b>synthetic</b> person"
    assert avatar.thumbnail_jpeg[:2] == b"\xff\xd8"
