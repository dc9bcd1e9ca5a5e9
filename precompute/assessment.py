"""The assessment of a clip: whether it suits an avatar, which stretch is used, and which flaws it has. No I/O."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from scipy.ndimage import binary_closing

from engine.errors import (
    ClipTooShortError,
    FaceTooSmallError,
    MediaError,
    MouthCoveredError,
    NoFaceError,
    SeveralFacesError,
    StillPictureError,
    YawTooLargeError,
)
from engine.media import FPS
from engine.models.morphable import VERTICES, MorphableModel, mouth_opening
from precompute.fit import rigid_poses
from precompute.occlusion import covered_frames
from precompute.scan import Scan, face_height
from precompute.shots import cuts
from precompute.track import longest_run

MIN_FRAMES = 2 * FPS
GOOD_FRAMES = 10 * FPS
MIN_FACE_PX, GOOD_FACE_PX = 120, 180
MAX_YAW_DEG, GOOD_YAW_DEG = 45.0, 30.0
RIVAL_SHARE = (
    0.55  # of the first face's height: a second face above this is a second speaker, a smaller one a passer-by
)
RIVAL_FRAMES_SHARE = 0.25  # of the clip with a second speaker; above it, the speaker is ambiguous
OTHER_PERSON = 0.40  # between two embeddings: one person's stay below 0.34, those of two people begin at 0.37
IDENTITY_SPAN = 5  # samples: four seconds, longer than any usual transition
STILL_FRAMES = FPS  # of a picture that stands still; breath and blinks move any shorter stretch of a film
STILL_CHANGE = 0.02  # grey levels of a thumbnail, between two frames; a mouth alone moves more
MIN_SHARPNESS = 50.0  # compressed video conferences reach 60 to 100
MIN_BRIGHTNESS, MAX_BRIGHTNESS = 55.0, 225.0
OPEN_RANGE = 0.045  # model units between the closed and the open mouth; people who talk reach 0.08 to 0.3
CLOSED = 0.05  # model units; lips that touch measure below 0.02
PROBLEMS = ("no face", "several", "small", "yaw", "still", "change", "covered")  # reasons why a frame is not used


@dataclass(frozen=True)
class Remark:
    """A flaw of the clip that the avatar will show: the finding, its effect and the remedy."""

    code: str
    text: str
    at_s: float | None = None  # where in the clip


@dataclass(frozen=True)
class Assessment:
    """The stretch `use` of the clip that becomes the avatar, and its figures.

    shots: the uninterrupted shots of the clip.  problem [T]: for each frame of the clip one of PROBLEMS, or ``.
    yaw_deg [n], opening [n]: head yaw and canonical mouth opening (model units) over the stretch, NaN without a face.
    face_px (pixels of the source), sharpness, brightness (as in Scan): medians over the stretch.
    """

    use: slice
    shots: tuple[slice, ...]
    problem: np.ndarray
    yaw_deg: np.ndarray
    opening: np.ndarray
    face_px: float
    sharpness: float
    brightness: float
    remarks: tuple[Remark, ...]

    @property
    def usable_s(self) -> float:
        return (self.use.stop - self.use.start) / FPS


def yaw_and_opening(scan: Scan, model: MorphableModel) -> tuple[np.ndarray, np.ndarray]:
    """Head yaw in degrees (to the viewer's right is positive) and canonical mouth opening (model units), [T] each.

    NaN where there is no face.
    """
    yaw, opening = np.full((2, len(scan)), np.nan, np.float32)
    tracked = scan.landmarks.tracked
    if tracked.any():
        points = scan.landmarks.points[tracked][:, :VERTICES]
        rotation, scale, translation = rigid_poses(points, model)
        canonical = np.einsum("tij,tvi->tvj", rotation, points - translation[:, None]) / scale[:, None, None]
        yaw[tracked] = np.degrees(np.arctan2(-rotation[:, 0, 2], rotation[:, 2, 2]))
        opening[tracked] = mouth_opening(torch.from_numpy(canonical)).numpy()
    return yaw, opening


def find_shots(scan: Scan) -> tuple[slice, ...]:
    """Cut the clip where the colours of the whole picture change, or where face and picture jump together; and around
    every slow change (dissolve, wipe, fade) from one person to another."""
    points = scan.landmarks.points
    centre, height = points[:, :VERTICES, :2].mean(1), face_height(points)
    motion = np.zeros(len(scan))
    motion[1:] = np.abs(np.diff(scan.thumbnails.astype(np.float32), axis=0)).mean((1, 2))
    changes = [edge for change in person_changes(scan) for edge in change]
    begins = cuts(scan.change, motion, centre, height, FPS)
    edges = sorted({0, len(scan), *map(int, begins), *scan.jumps, *changes})
    return tuple(slice(a, b) for a, b in pairwise(edges) if b > a)


def person_changes(scan: Scan) -> list[tuple[int, int]]:
    """Frames between which the face becomes another person's, suddenly or slowly, with a sample of margin on each side.

    The samples before and after it are up to IDENTITY_SPAN apart. Each side is the mean of two, as one may be blurred.
    """
    frames = sorted(scan.identities)
    faces = np.array([scan.identities[n] for n in frames])
    changes: list[tuple[int, int]] = []
    first = 0
    for stop in range(1, len(frames)):
        after = faces[stop : stop + 2].mean(0)
        for start in range(stop - 1, max(first, stop - IDENTITY_SPAN) - 1, -1):
            if np.linalg.norm(after - faces[max(first, start - 1) : start + 1].mean(0)) > OTHER_PERSON:
                changes.append((frames[max(first, start - 1)], frames[min(stop + 1, len(frames) - 1)]))
                first = stop + 1
                break
    return changes


def still_frames(scan: Scan) -> np.ndarray:
    """Frames [T] bool of slides, photographs and frozen pictures."""
    moved = np.abs(np.diff(scan.thumbnails.astype(np.float32), axis=0)).mean((1, 2)) > STILL_CHANGE
    edges = np.r_[0, np.flatnonzero(moved) + 1, len(scan)]
    still = np.zeros(len(scan), bool)
    for start, stop in pairwise(edges):
        still[start:stop] = stop - start > STILL_FRAMES
    return still


def _problems(scan: Scan, shots: tuple[slice, ...], yaw: np.ndarray, source_scale: float) -> np.ndarray:
    """For each frame [T] one of PROBLEMS, or ``."""
    height = face_height(scan.landmarks.points) * source_scale
    problem = np.full(len(scan), "", dtype="U8")
    for shot in shots:
        heights = height[shot][~np.isnan(height[shot])]
        if len(heights) and np.median(heights) < MIN_FACE_PX:
            problem[shot] = "small"
        if not scan.turns:  # the mesh stands upright, and its mouth is not on the lips of a face that is not
            problem[shot][covered_frames(scan.mouth_covered[shot])] = "covered"
    with np.errstate(invalid="ignore"):
        rival = scan.second_px * source_scale > RIVAL_SHARE * height
        problem[binary_closing(rival, np.ones(13))] = "several"  # a rival that the tracker loses for half a second
        problem[np.abs(yaw) > MAX_YAW_DEG] = "yaw"
        problem[rival] = "several"
    problem[still_frames(scan)] = "still"
    for first, last in person_changes(scan):
        problem[first:last] = "change"
    problem[~scan.landmarks.tracked] = "no face"
    return problem


def assess(
    scan: Scan,
    model: MorphableModel,
    *,
    source_scale: float = 1.0,
    max_frames: int = 10**9,
    has_audio: bool = True,
    wide_colours: bool = False,
) -> Assessment:
    """Choose the longest stretch of one shot that shows one face well, at most `max_frames` long.

    `source_scale`: pixels of the source per pixel of the scan; `wide_colours`: they were mapped to BT.709. Raises
    FaceError, StillPictureError or ClipTooShortError, with the place
    and the remedy, where no such stretch lasts MIN_FRAMES.
    """
    if len(scan) < MIN_FRAMES:
        raise ClipTooShortError(
            f"the clip lasts {len(scan) / FPS:.2f} s; at least {MIN_FRAMES / FPS:.0f} s are needed, 15 to 60 s are best"
        )
    yaw, opening = yaw_and_opening(scan, model)
    shots = find_shots(scan)
    problem = _problems(scan, shots, yaw, source_scale)
    _refuse_if_mostly(problem, scan, yaw, source_scale)
    runs = []
    for shot in shots:
        run = longest_run(problem[shot] == "")
        runs.append(slice(shot.start + run.start, shot.start + run.stop))
    use = max(runs, key=lambda run: run.stop - run.start)
    if use.stop - use.start < MIN_FRAMES:
        raise _too_short(problem, shots, use)
    if use.stop - use.start > max_frames:  # the last frame must show the face, as the end of a run does
        use = slice(use.start, use.start + int(np.flatnonzero(scan.landmarks.tracked[use][:max_frames])[-1]) + 1)
    height = face_height(scan.landmarks.points[use]) * source_scale
    assessment = Assessment(
        use=use,
        shots=shots,
        problem=problem,
        yaw_deg=yaw[use],
        opening=opening[use],
        face_px=float(np.nanmedian(height)),
        sharpness=float(np.nanmedian(scan.sharpness[use])),
        brightness=float(np.nanmedian(scan.brightness[use])),
        remarks=(),
    )
    remarks = (
        *_clip_remarks(assessment, scan, max_frames, has_audio),
        *_picture_remarks(assessment, scan, wide_colours),
        *_look_remarks(assessment),
    )
    return replace(assessment, remarks=remarks)


def _first_s(mask: np.ndarray) -> float:
    return int(mask.argmax()) / FPS


def _spans(mask: np.ndarray) -> list[tuple[int, int]]:
    """First frame and end of every run of True in mask [T]."""
    edges = np.flatnonzero(np.diff(np.r_[False, mask, False]))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def _share(mask: np.ndarray) -> str:
    return f"{100 * mask.mean():.0f} % of the clip"


def _remedy(scan: Scan) -> str:
    """The remedy for a picture that is not upright."""
    return f"turn the video clockwise by {90 * scan.turns}° and enrol it again"


def _refuse_if_mostly(problem: np.ndarray, scan: Scan, yaw: np.ndarray, source_scale: float) -> None:
    """Refuse a clip that mostly has a problem, even if a short stretch of it is good."""
    missing, several, small, turned, still, _, covered = (problem == code for code in PROBLEMS)
    if missing.mean() > 0.9:
        where = "any frame" if missing.all() else _share(missing)
        raise NoFaceError(
            f"no face was found in {where}; film one person from the front, the face at least "
            f"{GOOD_FACE_PX} px high from forehead to chin" + (f", or {_remedy(scan)}" if scan.turns else ""),
            at_s=_first_s(missing),
        )
    if several.mean() > RIVAL_FRAMES_SHARE:
        raise SeveralFacesError(
            f"several faces of similar size in {_share(several)}; crop or cut the video down to the speaker",
            at_s=_first_s(several),
        )
    if small.mean() > 0.5:
        height = float(np.nanmedian(face_height(scan.landmarks.points))) * source_scale
        raise FaceTooSmallError(
            f"the face is {height:.0f} px high from forehead to chin in {_share(small)}; at least {MIN_FACE_PX} px are "
            f"needed and {GOOD_FACE_PX} px are good: film closer or in a higher resolution",
            at_s=_first_s(small),
        )
    if still.mean() > 0.5:
        raise StillPictureError(
            f"the picture stands still in {_share(still)}; film the person talking: a photograph is not enough",
            at_s=_first_s(still),
        )
    if turned.mean() > 0.5:
        raise YawTooLargeError(
            f"the head is turned away by more than {MAX_YAW_DEG:.0f}° in {_share(turned)} "
            f"(up to {np.nanmax(np.abs(yaw)):.0f}°); film the speaker from the front",
            at_s=_first_s(turned),
        )
    if covered.mean() > 0.5:
        raise MouthCoveredError(
            f"an object covers the mouth in {_share(covered)}; film without a hand, mug or microphone before the lips",
            at_s=_first_s(covered),
        )


def _too_short(problem: np.ndarray, shots: tuple[slice, ...], use: slice) -> MediaError:
    """The error of the most frequent problem; of the cuts if most frames have no problem."""
    longest = (
        f"the longest uninterrupted stretch with one well visible face lasts {(use.stop - use.start) / FPS:.2f} s, "
        f"at least {MIN_FRAMES / FPS:.0f} s are needed"
    )
    errors: dict[str, tuple[type[MediaError], str]] = {
        "no face": (NoFaceError, "there is no face in"),
        "several": (SeveralFacesError, "there are several faces in"),
        "small": (FaceTooSmallError, f"the face is smaller than {MIN_FACE_PX} px in"),
        "yaw": (YawTooLargeError, f"the head is turned away by more than {MAX_YAW_DEG:.0f}° in"),
        "still": (StillPictureError, "the picture stands still in"),
        "covered": (MouthCoveredError, "an object covers the mouth in"),
        "change": (SeveralFacesError, "one person becomes another in"),
    }
    worst = max(errors, key=lambda code: int((problem == code).sum()))
    mask = problem == worst
    if mask.mean() > 0.1:
        error, finding = errors[worst]
        return error(f"{longest}; {finding} {_share(mask)}: cut or film the clip without that", at_s=_first_s(mask))
    cuts = ", ".join(f"{shot.start / FPS:.2f}" for shot in shots[1:6])
    return ClipTooShortError(
        f"{longest}; the clip is cut at {cuts} s: use one continuous shot" if cuts else f"{longest}; use a longer shot",
        at_s=use.start / FPS,
    )


def _clip_remarks(assessment: Assessment, scan: Scan, max_frames: int, has_audio: bool) -> Iterator[Remark]:
    """Remarks on the length of the clip, its sound and other people in it."""
    use, length = assessment.use, len(scan)
    if use.stop - use.start < 0.95 * length:
        reasons = "; ".join(_reasons(assessment, max_frames))
        text = f"{use.start / FPS:.2f} to {use.stop / FPS:.2f} s of {length / FPS:.2f} s are used ({reasons})"
        yield Remark("part", text, use.start / FPS)
    if use.stop - use.start < GOOD_FRAMES:
        seconds = f"only {assessment.usable_s:.1f} s are used"
        yield Remark("short", f"{seconds}: the loop shows and some mouth shapes are missing; film 15 to 60 s")
    if not has_audio:
        text = "the clip has no sound: if the speaker does not talk, there is no speaking style to learn"
        yield Remark("silent", text)
    bystander = scan.second_px[use] > 0
    if bystander.mean() > 0.02:
        share = f"another, smaller face is seen in {100 * bystander.mean():.0f} % of the frames"
        text = f"{share}; it will go on moving behind the avatar"
        yield Remark("bystander", text, use.start / FPS + _first_s(bystander))


def _picture_remarks(assessment: Assessment, scan: Scan, wide_colours: bool) -> Iterator[Remark]:
    """Remarks on time stamps, stills, the orientation of the picture and its colours."""
    if scan.jumps:
        places = ", ".join(f"{n / FPS:.2f} s" for n in scan.jumps[:5])
        yield Remark(
            "time-jump", f"the time stamps of the file jump at {places}: each jump counts as a cut", scan.jumps[0] / FPS
        )
    if changes := person_changes(scan):
        places = ", ".join(f"{(first + last) / 2 / FPS:.1f} s" for first, last in changes[:5])
        text = f"another person appears at about {places}: the longest shot of one of them is used"
        yield Remark("person", text, changes[0][0] / FPS)
    still = assessment.problem == "still"
    if still.any():
        first, seconds = _first_s(still), still.sum() / FPS
        text = f"the picture stands still for {seconds:.1f} s from {first:.2f} s on: that is not used"
        yield Remark("still", text, first)
    if (covered := assessment.problem == "covered").any():
        places = ", ".join(f"{start / FPS:.1f} to {stop / FPS:.1f} s" for start, stop in _spans(covered)[:5])
        text = f"an object is before the mouth from {places}: that is not used"
        yield Remark("covered", text, _first_s(covered))
    if scan.turns:
        yield Remark("turned", f"the face is not upright: {_remedy(scan)}")
    if wide_colours:
        text = (
            "the video has HDR or wide-gamut colours: they are mapped to BT.709, and the brightest lights are clipped"
        )
        yield Remark("hdr", f"{text}; film in SDR for exact colours")


def _reasons(assessment: Assessment, max_frames: int) -> Iterator[str]:
    """Why only a part of the clip is used."""
    if len(assessment.shots) > 1:
        yield "cuts at " + ", ".join(f"{shot.start / FPS:.2f} s" for shot in assessment.shots[1:6])
    for code in PROBLEMS:
        share = float((assessment.problem == code).mean())
        if share >= 0.01:
            yield f"{code} in {100 * share:.0f} %"
    if assessment.use.stop - assessment.use.start > max_frames - 4:
        yield f"no more than {max_frames / FPS:.0f} s are kept"


def _look_remarks(assessment: Assessment) -> Iterator[Remark]:
    """Remarks on the mouth, the size, the sharpness, the light and the pose of the face."""
    low, high = np.nanpercentile(assessment.opening, [3, 97])
    if high - low < OPEN_RANGE:
        text = "the mouth hardly opens: teeth and tongue will be guessed; let the speaker talk or read aloud"
        yield Remark("mouth-still", text)
    if low > CLOSED:
        text = "the lips never close: the resting mouth is guessed; let the speaker pause now and then"
        yield Remark("mouth-open", text)
    if assessment.face_px < GOOD_FACE_PX:
        height = f"the face is {assessment.face_px:.0f} px high"
        yield Remark("small", f"{height}: below {GOOD_FACE_PX} px teeth and lips look soft; film closer")
    if assessment.sharpness < MIN_SHARPNESS:
        measure = f"sharpness {assessment.sharpness:.0f}, good from {MIN_SHARPNESS:.0f}"
        yield Remark(
            "blur", f"the face is blurred ({measure}): the mouth will look just as soft; hold the camera still"
        )
    if assessment.brightness < MIN_BRIGHTNESS:
        text = "the face is dark: noise will flicker around the mouth; use more light from the front"
        yield Remark("dark", text)
    if assessment.brightness > MAX_BRIGHTNESS:
        yield Remark("bright", "the face is overexposed: skin and teeth have no detail left; use less light")
    turn = float(np.nanpercentile(np.abs(assessment.yaw_deg), 95))
    if turn > GOOD_YAW_DEG:
        limit = f"beyond {GOOD_YAW_DEG:.0f}° the far corner of the mouth is less exact"
        yield Remark("yaw", f"the head turns up to {turn:.0f}°: {limit}; film the speaker from the front")
