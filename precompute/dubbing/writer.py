"""The output's pictures in parts on disk, so that a run that was killed goes on behind its last whole part."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np

from engine.errors import OutputError
from engine.files import TEMPORARY, ffmpeg_name, replaced
from engine.locks import held
from precompute.dubbing.encoding import Encoding
from precompute.dubbing.timing import Plan

PART_S = 10.0  # of pictures in a part: what a kill can lose
JOB = "job.json"
FORMAT = "nut"  # keeps time stamps in any time base
AS_STAMPED = {"avoid_negative_ts": "disabled"}  # times of decoding may be negative, and shift nothing
UNFORCED = 0  # the encoder chooses the picture's type, not the source's


class Parts:
    """Encoded pictures in numbered files of a folder, some 10 s in each. A file has its name only when it is whole.

    next: number of the output's picture that is wanted next; behind the whole parts of an earlier run with `resume`.

    Raises OutputError where another run is at work in the folder, or it cannot be written.
    """

    def __init__(self, folder: Path, plan: Plan, encoding: Encoding, *, job: str = "", resume: bool = False):
        """job: tells apart everything else that the pictures depend on. Parts of another job are removed."""
        self.folder, self.plan, self.encoding = folder, plan, encoding
        self._size = max(1, round(PART_S * len(plan) / float(plan.duration_s)))
        self._open = ExitStack()
        try:
            folder.mkdir(exist_ok=True)
            self._lock()
            key = self._key(job)
            if not resume or _read(folder / JOB) != key:
                self._clear()
                (folder / JOB).write_text(key)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written ({error.strerror}); choose another output") from error

    @property
    def paths(self) -> list[Path]:
        """The whole parts, in order."""
        return list(itertools.takewhile(Path.is_file, (self._path(n) for n in itertools.count())))

    @property
    def next(self) -> int:
        return min(len(self.plan), len(self.paths) * self._size)

    def write(self, frames: Iterable[av.VideoFrame]) -> Iterator[int]:
        """Encode the frames of the output from `next` on; yields the number of the picture behind each."""
        waiting = iter(frames)
        for first in range(self.next, len(self.plan), self._size):
            ticks = self.plan.ticks[first : first + self._size].tolist()
            with (
                replaced(self._path(first // self._size)) as path,
                av.open(ffmpeg_name(path), "w", format=FORMAT, container_options=AS_STAMPED) as container,
            ):
                stream = self.encoding.add_to(container, self.plan.time_base)
                for number, tick in enumerate(ticks, first):
                    frame = next(waiting)
                    frame.pts, frame.time_base, frame.pict_type = tick, self.plan.time_base, UNFORCED
                    container.mux(stream.encode(frame))
                    yield number + 1
                container.mux(stream.encode(None))

    def remove(self) -> None:
        """Remove all parts, and the folder if nothing else is in it."""
        self._clear()
        self.close()

    def close(self) -> None:
        """Let other runs into the folder. It is removed where it holds no whole part and nothing of others."""
        if not self.paths:
            self._clear()
            with suppress(OSError):
                self.folder.rmdir()
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06}.{FORMAT}"

    def _lock(self) -> None:
        try:
            self._open.enter_context(held(self.folder, wait=False))
        except BlockingIOError as error:
            self._open.close()
            raise OutputError(
                f"{self.folder}: another run is writing the same output; wait for it or choose another output"
            ) from error

    def _key(self, job: str) -> str:
        plan = hashlib.sha256(self.plan.ticks.tobytes() + self.plan.sources.tobytes()).hexdigest()
        encoding = {name: str(value) for name, value in asdict(self.encoding).items() if name != "remarks"}
        facts = {"plan": plan, "time_base": str(self.plan.time_base), "end": self.plan.end, "job": job}
        return json.dumps(facts | {"encoding": encoding}, indent=1, sort_keys=True)

    def _clear(self) -> None:
        own = (f"[0-9]*.{FORMAT}", f".{TEMPORARY}*.{FORMAT}", JOB)
        for path in itertools.chain.from_iterable(self.folder.glob(pattern) for pattern in own):
            path.unlink(missing_ok=True)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def packets(parts: Parts, stream: av.VideoStream, lead: int) -> Iterator[av.Packet]:
    """The packets of all parts for `stream`, `lead` ticks later, with times of decoding over the joints."""
    shown = np.append(parts.plan.ticks, parts.plan.end) + lead
    usual, delay, number = int(shown[1] - shown[0]), 0, 0
    for path in parts.paths:
        with av.open(ffmpeg_name(path)) as container:
            source = container.streams.video[0]
            delay = max(delay, source.codec_context.reorder_depth)
            for packet in container.demux(source):
                if packet.pts is None:
                    continue
                packet.pts = round(packet.pts * packet.time_base / parts.plan.time_base) + lead
                place, at = int(np.searchsorted(shown, packet.pts)), number - delay
                packet.duration = int(shown[place + 1] - shown[place])
                packet.dts = int(shown[at]) if at >= 0 else int(shown[0]) + at * usual
                packet.time_base, packet.stream = parts.plan.time_base, stream
                number += 1
                yield packet
