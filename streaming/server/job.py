"""One job of a client: its files, its state for clients, and the child process that does the work."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from engine.child import STOP_S, ChildEvents, Report, Work, WorkEvent, WorkProgress
from engine.errors import MediaError, PersonaStreamError
from engine.queues import MediaQueue, Policy, QueueClosed
from streaming.server.auth import Token

LOW_PRIORITY = ("nice", "-n", "10")  # below the live sessions
MAX_LINE_BYTES = 1 << 26  # the report of an hour
MAX_REMARKS = 100
SECRET = re.compile("KEY|SECRET|TOKEN|PASSWORD")  # in names of variables that a stranger's video has no use for


class State(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    DELETED = "deleted"


class Job(ABC):
    """Work on an uploaded video in `folder`, which holds the job's files and belongs to it alone.

    video_name: as its owner calls it.
    """

    work: ClassVar[Work]
    fields: ClassVar[Mapping[str, str]] = MappingProxyType({})  # of the form, by the code of an error
    keeps_files: ClassVar[bool] = True  # after its end, for a while

    def __init__(self, folder: Path, video: Path, video_name: str, now: float):
        self.id, self.folder, self.video, self.video_name = secrets.token_hex(8), folder, video, video_name
        self.token = Token(float("inf"), now)
        self.state = State.WAITING
        self.ended_at: float | None = None  # loop time
        self.task: asyncio.Task[None] | None = None
        self._progress: WorkProgress | None = None
        self._remarks: list[dict[str, Any]] = []
        self._error: dict[str, Any] | None = None
        self._report: Report | None = None
        self._listeners: list[MediaQueue[None]] = []

    @property
    def name(self) -> str:
        return self.video_name

    @abstractmethod
    def encode(self) -> bytes:
        """The line for the child."""

    async def prepare(self) -> None:  # noqa: B027  most jobs have nothing to do here
        """Work before the child's. Raises PersonaStreamError."""

    async def complete(self) -> None:  # noqa: B027
        """Work after the child's. Raises PersonaStreamError."""

    @property
    def over(self) -> bool:
        return self.state not in (State.WAITING, State.RUNNING)

    def status(self) -> dict[str, Any]:
        """For clients, without addresses."""
        stage = self._progress
        return {
            "id": self.id,
            "name": self.name,
            "status": self.state.value,
            "stage": stage.stage if stage else None,
            "done": stage.done if stage else 0,
            "total": stage.total if stage else 0,
            "left_s": stage.left_s if stage else None,
            "remarks": self._remarks,
            "error": self._error,
            "report": self._report,
        }

    def listen(self) -> MediaQueue[None]:
        """A queue that wakes its reader after changes; a slow reader sees the last of them."""
        queue: MediaQueue[None] = MediaQueue(1, Policy.DROP_OLDEST)
        self._listeners.append(queue)
        return queue

    def forget(self, queue: MediaQueue[None]) -> None:
        """Idempotent."""
        if queue in self._listeners:
            self._listeners.remove(queue)

    async def run(self, program: tuple[str, ...]) -> None:
        """Do the work. Raises nothing but CancelledError and faults of our own."""
        self.state = State.RUNNING
        try:
            await self._changed()
            await self.prepare()
            report = await self._child(program)
            await self.complete()
            self._report = self._for_clients(report)
            self.state = State.FINISHED
        except PersonaStreamError as error:
            self.fail(error)

    def fail(self, error: PersonaStreamError) -> None:
        """The job ends with that error."""
        at_s = error.at_s if isinstance(error, MediaError) else None
        self._error = {
            "code": error.code,
            "message": self._for_clients(str(error)),
            "at_s": at_s,
            "field": self.field_of(error),
        }
        self.state = State.FAILED

    def field_of(self, error: PersonaStreamError) -> str | None:
        """The field of the form that the error is about."""
        return self.fields.get(error.code, "video" if isinstance(error, MediaError) else None)

    async def close(self) -> None:
        """Tell the listeners the last state."""
        await self._changed()
        for queue in self._listeners:
            await queue.close()

    async def _changed(self) -> None:
        for queue in list(self._listeners):
            with contextlib.suppress(QueueClosed):
                await queue.put(None)

    async def begin(self, stage: str) -> None:
        """A stage beside the child's begins, of unknown length."""
        self._progress = WorkProgress(stage, 0, 0)
        await self._changed()

    async def _child(self, program: tuple[str, ...]) -> Report:
        """The child's report. Raises its error; leaving it ends the child."""
        pipe, variables = asyncio.subprocess.PIPE, _environment(self.folder)
        with (self.folder / "errors.txt").open("w+b") as errors:
            try:
                child = await asyncio.create_subprocess_exec(
                    *LOW_PRIORITY,
                    *program,
                    stdin=pipe,
                    stdout=pipe,
                    stderr=errors,
                    env=variables,
                    limit=MAX_LINE_BYTES,
                )
            except OSError as error:
                raise self.work.crash(f"{LOW_PRIORITY[0]} does not start ({error.strerror or error})") from error
            assert child.stdin is not None and child.stdout is not None
            try:
                with contextlib.suppress(ConnectionError):  # its end says why it does not read
                    child.stdin.write(self.encode())
                    await child.stdin.drain()
                events = ChildEvents(self.work, self.video, errors)
                async for line in child.stdout:
                    if (event := events.read(line)) is not None:
                        await self._take(event)
                return events.end(await child.wait())
            finally:
                await _stop(child)

    async def _take(self, event: WorkEvent) -> None:
        if isinstance(event, WorkProgress):
            self._progress = event
        else:
            remark = {"code": event.code, "text": self._for_clients(event.text), "at_s": event.at_s}
            self._remarks = [*self._remarks, remark][-MAX_REMARKS:]
        await self._changed()

    def _for_clients(self, value: Any) -> Any:
        """Without the server's paths: files have the names that their owner gave them."""
        if isinstance(value, str):
            return value.replace(str(self.video), self.video_name).replace(f"{self.folder}/", "")
        if isinstance(value, Mapping):
            return {name: self._for_clients(each) for name, each in value.items()}
        return [self._for_clients(each) for each in value] if isinstance(value, list) else value


def _environment(folder: Path) -> dict[str, str]:
    """Of the child: its temporary files are in the folder of the job; no secrets."""
    open_to_all = {name: value for name, value in os.environ.items() if not SECRET.search(name.upper())}
    return open_to_all | {"TMPDIR": str(folder)}


async def _stop(child: asyncio.subprocess.Process) -> None:
    if child.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        child.terminate()
    try:
        async with asyncio.timeout(STOP_S):
            await child.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
