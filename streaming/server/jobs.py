"""All jobs of one kind: admitted within their limits, run one after another, and deleted some time after their end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

from engine.errors import CapacityError, DrainingError, PersonaStreamError
from engine.files import working_folder
from streaming.config import JobsConfig
from streaming.server.job import Job, State

log = logging.getLogger(__name__)

JobT = TypeVar("JobT", bound=Job)


class Jobs(Generic[JobT]):
    """The jobs by id. An async context that ends and deletes them at its end.

    kind: one of them in log and messages, such as dub.  disk: the thread that writes and deletes files.
    """

    def __init__(self, kind: str, config: JobsConfig):
        self.disk = ThreadPoolExecutor(1, thread_name_prefix=kind)
        self.kind, self._config = kind, config
        self._jobs: dict[str, JobT] = {}  # in the order of their arrival
        self._uploads: set[asyncio.Task[None]] = set()
        self._closing = False
        self._turns = asyncio.Semaphore(config.at_once)
        self._tasks = asyncio.TaskGroup()
        self._stack = contextlib.AsyncExitStack()

    def __iter__(self) -> Iterator[JobT]:
        return iter(self._jobs.values())

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self.disk.shutdown)
            self._folder = stack.enter_context(working_folder())  # removes those of servers that were killed
            await stack.enter_async_context(self._tasks)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        for upload in self._uploads:
            upload.cancel()
        if self._uploads:
            await asyncio.wait(self._uploads)
        for job in list(self):
            await self.remove(job)
        await self._stack.__aexit__(kind, error, trace)

    def find(self, job_id: str) -> JobT | None:
        return self._jobs.get(job_id)

    def position(self, job: JobT) -> int | None:
        """How many run or wait before it; None once it runs."""
        if job.state is not State.WAITING:
            return None
        return next(place for place, other in enumerate(o for o in self if not o.over) if other is job)

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[Path]:
        """A folder for an upload, with a place in the queue; both are given back where the block does not `add` it.

        Raises CapacityError, DrainingError.
        """
        if self._closing:
            raise DrainingError("the server is shutting down; try another one")
        most = self._config.at_once + self._config.waiting
        if len(self._uploads) + sum(not job.over for job in self) >= most:
            raise CapacityError(f"{most} {self.kind}s run or wait, the most that this server takes; try again later")
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        task = asyncio.current_task()
        assert task is not None
        self._uploads.add(task)
        try:
            yield folder
        finally:
            self._uploads.discard(task)
            if not any(job.folder == folder for job in self):
                await self._delete(folder)

    def add(self, job: JobT) -> None:
        """Queue a job, whose folder is a `place` of this queue."""
        self._jobs[job.id] = job
        job.task = self._tasks.create_task(self._run(job))

    async def remove(self, job: JobT) -> None:
        """End the job if it has not ended, and delete its files. Idempotent."""
        if self._jobs.pop(job.id, None) is None:
            return
        if job.task is not None and job.task is not asyncio.current_task():
            job.task.cancel()
            await asyncio.wait([job.task])
        job.state = State.DELETED
        await job.close()
        await self._delete(job.folder)

    async def _run(self, job: JobT) -> None:
        async with self._turns:
            log.info("%s.begin %s=%s", self.kind, self.kind, job.id)
            try:
                await job.run(self._config.program)
            except Exception:
                log.exception("%s %s failed", self.kind, job.id)
                job.fail(PersonaStreamError("the server failed; its log has the reason"))
        loop = asyncio.get_running_loop()
        job.ended_at = loop.time()
        log.info("%s.end %s=%s status=%s", self.kind, self.kind, job.id, job.state.value)
        await job.close()
        if job.state is State.FAILED or not job.keeps_files:
            await self._delete(job.folder)
        over = [other for other in self if other.over]
        for other in over[: max(0, len(over) - self._config.kept)]:
            await self.remove(other)
        await asyncio.sleep(self._config.keep_s)
        await self.remove(job)

    async def _delete(self, folder: Path) -> None:
        await asyncio.get_running_loop().run_in_executor(self.disk, shutil.rmtree, folder, True)
