"""Dubbing: the same video with other words, stage by stage.

    Dubbing(Path("talk.mp4"), {"auto": Path("speech.wav")}, Path("out.mp4")).run()

The first pass finds the faces; people, shots and references follow from it. The second pass paints new mouths into the
pictures and encodes them in parts, so that an interrupted run can go on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from engine.audio import SPEECH_RATE_HZ
from engine.backends.backend import Backend
from engine.backends.cpu import CpuBackend
from engine.config import Quality
from engine.errors import NoFaceError, SettingError
from engine.files import check_output
from engine.media import FPS
from engine.models.persona import LipSpace, PersonaMap, no_persona
from engine.models.weights import load_face_model
from engine.paint.references import NEIGHBOURS
from engine.sound_file import SoundFile
from precompute.dubbing import faces as first_pass
from precompute.dubbing import people as fitting
from precompute.dubbing import speaker, timing
from precompute.dubbing.ahead import ahead
from precompute.dubbing.cast import Part, Passage, active, part, speech_at
from precompute.dubbing.encoding import encoding_of
from precompute.dubbing.faces import Faces
from precompute.dubbing.lips import Lips, share_of_speech, speech_features, spoken
from precompute.dubbing.muxer import FORMATS, finish
from precompute.dubbing.painting import NewMouth, PaintedFace, Window, paint
from precompute.dubbing.people import Person
from precompute.dubbing.references import Crops, Place, choose, portrait
from precompute.dubbing.report import Report, Samples, write_report
from precompute.dubbing.source import Picture, Remark, Source
from precompute.dubbing.speaker import Agreement, OriginalSound
from precompute.dubbing.timing import Length, Plan
from precompute.dubbing.workspace import Workspace
from precompute.dubbing.writer import Parts
from precompute.frame_size import scan_size
from precompute.progress import Clock, Progress

AUTO = "auto"
HEARD_S = 300  # of the original sound: enough to know whose it is
STAGES = {"faces": 0.33, "people": 0.07, "references": 0.02, "pictures": 0.57, "file": 0.01}
"""The stages, and the usual share of the time that each takes."""
MOSTLY = 0.3  # of the pictures of a face: then it talks, whatever is heard
READ_AHEAD = 3  # pictures


@dataclass(frozen=True, kw_only=True)
class Options:
    """The user's choices; `engine.dubbing.DubOptions` explains them."""

    length: Length = "video"
    from_s: float | None = None
    to_s: float | None = None
    mix_db: float | None = None
    report: Path | None = None
    resume: bool = False
    quality: Quality = "best"


class Dubbing:
    """Dubs one video. Each stage is a method; `run` calls them in order.

    speech: sound files by the number of the face that speaks them, as the report shows it, or one by `auto`: for the
    faces that the original sound comes from.  `progress` and `on_remark` are called on the thread that runs the stages;
    an exception that they raise ends the work.

    Raises OutputError, NotAVideoError, CorruptVideoError, SpeechFormatError and SettingError before any work.
    """

    def __init__(
        self,
        video: Path,
        speech: Mapping[str, Path],
        output: Path,
        options: Options | None = None,
        *,
        backend: Backend | None = None,
        progress: Progress = lambda *_: None,
        on_remark: Callable[[Remark], None] = lambda _: None,
    ) -> None:
        self.video, self.output, self.options = video, output, options or Options()
        self._inputs = {"video": video, **{f"speech of face {key}": path for key, path in speech.items()}}
        check_output(output, tuple(FORMATS), self._inputs)
        if self.options.report is not None:
            check_output(self.options.report, (".html",), option="--report")
        self.source = Source(video)
        self.encoding = encoding_of(self.source, output.suffix.lower(), self.options.quality)
        self.speech = {key: SoundFile(path) for key, path in speech.items()}
        self._length: dict[str, Any] = {
            "length": self.options.length,
            "speech_s": max(sound.duration_s for sound in self.speech.values()),
            "from_s": self.options.from_s,
            "to_s": self.options.to_s,
        }
        if self.source.duration_s:  # as the header states it
            timing.check(video_s=self.source.duration_s, **self._length)
        self.remarks: dict[Remark, None] = {}
        self._on_remark = on_remark
        self._backend = backend or CpuBackend.embedded(quality=self.options.quality)
        self._model = load_face_model()
        self._clock = Clock(STAGES, progress)

    def run(self) -> Report:
        """Write the output. Finished work of an interrupted run stays in the folder beside it, for `resume`.

        Raises MediaError and its children for a video that cannot be dubbed, OutputError. An older output stays
        unchanged until the new one is whole.
        """
        spending = self._clock.spending
        with Workspace(self.output, self._inputs, resume=self.options.resume) as space:
            with spending("faces"):
                faces = self.find_faces(space)
            with spending("people"):
                plan = timing.plan(faces.times, **self._length)
                people = self.fit(faces)
                parts = self.cast(faces, people, plan)
            space.keep = True  # what follows is work, and no longer the user's choices
            with spending("references"):
                crops, chosen = self.take_references(space, people, parts)
            samples, key = Samples(plan, parts), space.key(self.options)
            with Parts(space.folder / "pictures", plan, self.encoding, job=key, resume=space.resumed) as encoded:
                with spending("pictures"):
                    frames = self.paint(plan, parts, crops, chosen, encoded.next, samples)
                    for done in encoded.write(self._clock.timed(frames, "waiting")):
                        self._clock.tell("pictures", done, len(plan))
                with spending("file"):
                    self.finish(plan, encoded)
            report = Report.of(self.output, faces, plan, people, parts, tuple(self.remarks), self._spent_s())
            if self.options.report is not None:
                portraits = {person.number: crops.read(person, portrait(person)) for person in people}
                write_report(self.options.report, report, portraits, samples)
            space.clear()
        return report

    def _spent_s(self) -> dict[str, float]:
        spent_s: dict[str, float] = dict(self._clock.spent_s)
        spent_s["encoding"] = spent_s["pictures"] - spent_s.pop("waiting", 0.0)
        return {name: round(seconds, 2) for name, seconds in spent_s.items()}

    def find_faces(self, space: Workspace) -> Faces:
        """The first pass, or what an earlier run found."""
        if space.resumed and first_pass.is_complete(space.folder):
            faces = first_pass.load(space.folder)
            self.source.times = faces.times
        else:
            total = self.source.frames_estimate
            faces = first_pass.scan(
                self.source,
                scan_size(*self.source.upright_size),
                space.folder,
                lambda done: self._clock.tell("faces", done, max(done, total)),
            )
        self._clock.tell("faces", len(faces.times), len(faces.times))
        for remark in (*self.encoding.remarks, *self.source.remarks):
            self.remark(remark)
        return faces

    def fit(self, faces: Faces) -> list[Person]:
        """Everybody in the video. Raises NoFaceError."""
        people = fitting.people(
            faces,
            first_pass.tracks(faces),
            self._model,
            self._backend,
            lambda done, total: self._clock.tell("people", done, total),
        )
        if not people:
            raise NoFaceError(
                f"{self.video}: no face was found; dubbing needs a person whose face is seen for a second or more",
                at_s=0.0,
            )
        return people

    def cast(self, faces: Faces, people: list[Person], plan: Plan) -> list[Part]:
        """Who speaks which speech, and what happens to each of their pictures. Raises SettingError for a face that does
        not exist."""
        source, times, durations = plan.sources, *plan.seconds()
        begin, end = (float(edge) for edge in plan.passage_s)
        inside = (times >= begin) & (times < end)
        parts, original = [], self.hear(faces)
        for key, sound in self.speech.items():
            share = share_of_speech(spoken(sound.blocks(SPEECH_RATE_HZ)))
            speech = speech_at(share, times - begin, durations)
            for person, turn in self._speakers(key, faces, people, original):
                persona = no_persona() if original is None else original.persona(person).change
                parts.append(part(person, key, persona, source, speech, inside & turn[source], faces.rate_hz))
        return parts

    def _speakers(
        self, key: str, faces: Faces, people: list[Person], original: OriginalSound | None
    ) -> list[tuple[Person, np.ndarray]]:
        """The people who speak a speech, each with the pictures [P] bool of the source in which they do."""
        if key == AUTO:
            return self._original_speakers(faces, people, original)
        for person in people:
            if str(person.number) == key:
                return [(person, np.ones(len(faces.times), bool))]
        numbers = ", ".join(f"{person.number} ({person.pictures / faces.rate_hz:.1f} s)" for person in people)
        raise SettingError(f"face {key}: the video shows the faces {numbers}; choose one of them, or auto")

    def hear(self, faces: Faces) -> OriginalSound | None:
        """The original sound, its first minutes; None without."""
        if not self.source.has_sound:
            return None
        sound = SoundFile(self.video)
        steps = HEARD_S * FPS // self._backend.speech_config.step_frames
        features = list(itertools.islice(speech_features(sound.blocks(SPEECH_RATE_HZ), self._backend), steps))
        offset_s = (sound.start_s or 0.0) - float(faces.times.origin_s)
        return OriginalSound(torch.cat(features), offset_s, faces, self._model, self._backend)

    def _original_speakers(
        self, faces: Faces, people: list[Person], original: OriginalSound | None
    ) -> list[tuple[Person, np.ndarray]]:
        agreements = [Agreement(0.0, 0) if original is None else original.agreement(person) for person in people]
        numbers = speaker.speakers(people, agreements)
        if not numbers:
            talking = [speaker.talking_share(person, faces.rate_hz) for person in people]
            best = int(np.argmax(talking))
            if talking[best] < MOSTLY:
                text = "no face speaks in the video, so no mouth was changed; --face N gives the speech to one of them"
                self.remark(Remark("off-screen", text))
                return []
            numbers = [people[best].number]
            text = f"no mouth agrees with the original sound; face {numbers[0]} was taken, whose mouth moves most"
            self.remark(Remark("speaker-guessed", text))
        chosen = [person for person in people if person.number in numbers]
        turns = speaker.turns(chosen, len(faces.times), faces.rate_hz)
        return [(person, turns[person.number]) for person in chosen]

    def take_references(
        self, space: Workspace, people: list[Person], parts: list[Part]
    ) -> tuple[Crops, dict[int, dict[int, list[Place]]]]:
        """The lip references of everybody who speaks, by person and shot, and a portrait of everybody."""
        crops = Crops(space.folder / "references", self.options.quality == "best")
        chosen = {one.person.number: choose(one.person) for one in parts}
        wanted = {(person.number, portrait(person)): person for person in people}
        for one in parts:
            for places in chosen[one.person.number].values():
                wanted |= {(one.person.number, place): one.person for place in places}
        for done in crops.read_from(self.source, [(person, place) for (_, place), person in wanted.items()]):
            self._clock.tell("references", done, len(wanted))
        return crops, chosen

    def paint(
        self,
        plan: Plan,
        parts: list[Part],
        crops: Crops,
        chosen: Mapping[int, Mapping[int, list[Place]]],
        begin: int,
        samples: Samples,
    ) -> Iterator[av.VideoFrame]:
        """The frames of the output from picture `begin` on."""
        window = Window()
        painters: dict[int, tuple[Passage, PaintedFace]] = {}
        lips = self._lips(parts)
        times, durations = plan.seconds()
        speech_s = float(plan.passage_s[0])

        def face(one: Part, passage: Passage) -> PaintedFace:
            held = painters.get(one.person.number)
            if held is None or held[0] is not passage:
                run = one.person.runs[passage.run].between(passage.t.min(), passage.t.max() + 1)
                bank = crops.bank(one.person, run.shot, chosen[one.person.number][run.shot])
                made = PaintedFace(run, self.source.upright_size, bank, window, self._model, self._backend)
                painters[one.person.number] = held = passage, made
            return held[1]

        def mouths(k: int, picture: Picture) -> list[NewMouth]:
            return [
                NewMouth(
                    face(one, passage),
                    int(passage.t[place] - passage.t.min()),
                    lips[one.speech, one.person.number].at(times[k] - speech_s, durations[k]),
                    float(passage.change.lips[place]),
                    float(passage.change.pixels[place]),
                    samples.wanted(k, one.person.number),
                )
                for one, passage, place in (active(parts, k) if k >= begin else ())
            ]

        first = max(0, begin - NEIGHBOURS)
        decoded = self._clock.timed(plan.pictures(self.source, first), "decoding")
        pictures = (picture for _, picture in ahead(decoded, READ_AHEAD))
        frames = paint(pictures, mouths, window, self._backend.workers, first, self._clock)
        return itertools.islice(frames, begin - first, None)

    def _lips(self, parts: list[Part]) -> dict[tuple[str, int], Lips]:
        made, space = {}, LipSpace(self._model)
        for key, sound in self.speech.items():
            cast = [one for one in parts if one.speech == key]
            heard = spoken(sound.blocks(SPEECH_RATE_HZ))
            streams = itertools.tee(speech_features(sound.blocks(SPEECH_RATE_HZ), self._backend), max(1, len(cast)))
            for one, features in zip(cast, streams, strict=False):
                person, template = one.person, self._model.mean + self._model.shape(one.person.alpha)
                rest = self._model.vertices(person.alpha, person.rest_beta)[self._model.lower]
                made[key, person.number] = Lips(
                    features,
                    share_of_speech(heard),
                    self._backend,
                    template=template,
                    style=person.style,
                    rest=rest,
                    persona=PersonaMap(space, one.persona, template[self._model.lower], rest),
                )
        return made

    def finish(self, plan: Plan, encoded: Parts) -> None:
        """Put pictures, sound and what is copied into the output."""
        left_out = finish(
            self.output,
            self.source,
            plan,
            encoded,
            list(self.speech.values()),
            mix_db=self.options.mix_db,
            on_progress=lambda done, total: self._clock.tell("file", done, total),
        )
        for remark in left_out:
            self.remark(remark)

    def remark(self, remark: Remark) -> None:
        """Tell the user something, once."""
        if remark not in self.remarks:
            self.remarks[remark] = None
            self._on_remark(remark)
