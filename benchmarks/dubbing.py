"""`python -m benchmarks.dubbing VIDEO SPEECH`: pictures a second, the share of each part, and memory of a dub."""

from __future__ import annotations

import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

from benchmarks.command import run
from engine.backends.select import describe
from engine.child import WorkEvent, WorkProgress
from engine.dubbing import DubOptions, dub_video


@dataclass(frozen=True, kw_only=True)
class Dubbing:
    """Dub a video in a temporary folder, and print what it cost."""

    video: tyro.conf.Positional[Path]
    speech: tyro.conf.Positional[Path]
    quality: Literal["best", "fast"] = "best"
    length: Literal["video", "cut", "loop", "bounce", "stretch"] = "loop"

    def run(self) -> None:
        began_s, started_s = time.perf_counter(), 0.0

        def listen(event: WorkEvent) -> None:
            nonlocal started_s
            if isinstance(event, WorkProgress) and not started_s:
                started_s = time.perf_counter() - began_s

        with tempfile.TemporaryDirectory() as folder:
            options = DubOptions(length=self.length, quality=self.quality)
            report = dub_video(self.video, {"auto": self.speech}, Path(folder) / "out.mp4", options, listen)
        seconds = time.perf_counter() - began_s
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        pictures, spent_s = report["pictures"], report["spent_s"]
        print(describe(torch.device("cpu")))
        print(f"{pictures} pictures, {report['changed']} with a new mouth, in {seconds:.1f} s")
        rate = pictures / (seconds - started_s)
        print(f"{started_s:.1f} s until the first picture was read; {rate:.1f} pictures/s from then on")
        for name in ("faces", "people", "references", "pictures", "file"):
            print(f"  {name:<12}{1000 * spent_s.get(name, 0.0) / pictures:7.1f} ms a picture")
        print("in the stage `pictures`, on several threads:")
        for name in ("decoding", "painting", "encoding"):
            print(f"  {name:<12}{1000 * spent_s.get(name, 0.0) / pictures:7.1f} ms a picture")
        print(f"processor time {(used.ru_utime + used.ru_stime) / pictures * 1000:.1f} ms a picture")
        print(f"memory at most {used.ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    run(Dubbing, "python -m benchmarks.dubbing")
