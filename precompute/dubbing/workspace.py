"""The folder beside the output in which a dub keeps what it has finished, so that an interrupted run can go on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from engine.errors import OutputError
from engine.locks import held

FACTS = "video.json"


class Workspace:
    """`OUT.parts`, locked while it is open.

    resumed: it holds the work of an earlier run on the same video.  keep: whether it stays, else it is removed.

    Raises OutputError where another run is at work in it, or it cannot be written.
    """

    def __init__(self, output: Path, inputs: Mapping[str, Path], *, resume: bool):
        self.folder = output.with_name(f"{output.name}.parts")
        self._inputs = {role: _facts(path) for role, path in inputs.items()}
        self.keep = False
        self._lock = ExitStack()
        try:
            self.folder.mkdir(exist_ok=True)
            self._lock.enter_context(held(self.folder, wait=False))
            video = json.dumps(self._inputs["video"])
            facts = self.folder / FACTS
            self.resumed = resume and facts.exists() and facts.read_text() == video
            if not self.resumed:
                _empty(self.folder)
                facts.write_text(video)
        except BlockingIOError as error:
            raise OutputError(
                f"{self.folder}: another run writes the same output; wait for it or choose another output"
            ) from error
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot be written ({error.strerror}); choose another output") from error

    def key(self, options: Any) -> str:
        """Everything that the pictures depend on."""
        chosen = asdict(options) if is_dataclass(options) and not isinstance(options, type) else options
        return json.dumps([self._inputs, {name: str(value) for name, value in chosen.items() if name != "resume"}])

    def clear(self) -> None:
        """Remove the folder: the output is written."""
        self.keep = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.keep:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()


def _facts(path: Path) -> list[Any]:
    """What tells apart two versions of a file."""
    state = path.stat()
    return [str(path.resolve()), state.st_size, state.st_mtime_ns]


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
