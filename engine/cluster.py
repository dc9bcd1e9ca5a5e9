"""A Ray cluster: this process in it, and files as its tasks. Ray is an extra and imported when it is used."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from engine.errors import ClusterError, DependencyError
from engine.files import replaced, working_folder

NAMESPACE = "personastream"
TASK_CPUS = 2  # of one file's task: what dubbing and enrolment can use
REACH_S = 5.0  # for an address to answer
RETRIES = 3  # of a task whose machine died; a file that cannot be used fails at once

Work = Callable[[list[Path], Path], None]
"""work(inputs, output) writes the output. A function of a module, or a partial of one: Ray sends it by name."""


@dataclass(frozen=True)
class FileTask:
    """Files that become one."""

    inputs: tuple[Path, ...]
    output: Path


def import_ray() -> ModuleType:
    """Ray, which uses this user's token of its clusters if there is one. Raises DependencyError."""
    if (Path.home() / ".ray" / "auth_token").is_file():  # `ray start` then requires it, `ray.init` does not send it
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        import ray
    except ModuleNotFoundError as error:
        raise DependencyError("Ray is not installed; run: pip install 'personastream[cluster]'") from error
    return ray


@contextlib.contextmanager
def joined(address: str | None, *, start: bool) -> Iterator[str]:
    """In the block this process belongs to the Ray cluster at `address`, by default the one of this machine. Without
    one, and with `start`, it starts Ray for the time of the block. Yields the address.

    Raises DependencyError, ClusterError.
    """
    ray = import_ray()
    target = address or (None if start else "auto")
    dashboard = None if target else False
    try:
        _check_reachable(address or os.environ.get("RAY_ADDRESS", ""))
        ray.init(target, namespace=NAMESPACE, logging_level=logging.WARNING, include_dashboard=dashboard)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ClusterError(
            f"no Ray cluster at {address or 'this machine'} ({error}); start one with `ray start --head`, and join it "
            "from other machines with `ray start --address HEAD:6379`"
        ) from error
    try:
        yield str(ray.get_runtime_context().gcs_address)
    finally:
        ray.shutdown()


def run_tasks(work: Work, tasks: Sequence[FileTask], console: Console) -> int:
    """Run the tasks on the joined cluster, with a bar on `console`. Files go there and come back through Ray's object
    store: the machines need no common folder. Returns the exit code: 0, or 2 where a file failed.

    Raises OutputError.
    """
    ray = import_ray()
    stored = {path: ray.put(path.read_bytes()) for path in {path for task in tasks for path in task.inputs}}
    remote = ray.remote(_run).options(num_cpus=TASK_CPUS, max_retries=RETRIES)
    running = {
        remote.remote(work, [path.name for path in task.inputs], task.output.name, *map(stored.get, task.inputs)): task
        for task in tasks
    }
    failed = 0
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as bars:
        bar = bars.add_task("Files", total=len(tasks))
        while running:
            (done,), _ = ray.wait(list(running))
            task = running.pop(done)
            failed += not _finish(ray, done, task, console)
            bars.advance(bar)
    return 2 if failed else 0


def _run(work: Work, names: list[str], output_name: str, *contents: bytes) -> bytes:
    """The task, on any machine: inputs and output are files in a folder of its own."""
    with working_folder() as folder:
        inputs = [folder / str(number) / name for number, name in enumerate(names)]  # two may have one name
        for path, content in zip(inputs, contents, strict=True):
            path.parent.mkdir()
            path.write_bytes(content)
        output = folder / output_name
        work(inputs, output)
        return output.read_bytes()


def _finish(ray: ModuleType, done: Any, task: FileTask, console: Console) -> bool:
    """Write the output of a task that has ended, or say why there is none."""
    try:
        content = ray.get(done)
    except ray.exceptions.RayTaskError as error:
        console.print(f"[red]✗[/] {escape(f'{task.output}: {error.cause}')}", highlight=False, soft_wrap=True)
        return False
    except ray.exceptions.WorkerCrashedError:
        reason = f"its process died {1 + RETRIES} times; the log of Ray has the reason"
        console.print(f"[red]✗[/] {escape(f'{task.output}: {reason}')}", highlight=False, soft_wrap=True)
        return False
    with replaced(task.output) as temporary:
        temporary.write_bytes(content)
    console.print(f"[green]✓[/] {escape(str(task.output))}", highlight=False, soft_wrap=True)
    return True


def _check_reachable(address: str) -> None:
    """Raises ConnectionError where nothing listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), REACH_S).close()
        except OSError as error:
            raise ConnectionError(str(error)) from error
