"""Fixtures of the whole suite: the bundled speaker, enrolled, the bundled speech, and a virtual clock; and the markers
that a test gets from the fixtures it uses."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import re
import selectors
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent
EXCERPT_S = 6.0
ENROLMENT_CODE = ("precompute/*.py", *(f"engine/{room}/**/*.py" for room in ("avatar", "backends", "models", "paint")))
MAY_SKIP_IN_CI = re.compile("CUDA|NVENC|NVIDIA")
collect_ignore = ["agents"]  # they run in environments of their own, which tests/streaming/agents starts


def pytest_configure() -> None:
    """A process in the background may ignore signals, and so would those that the tests start and signal."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that drive a browser, and as slow those that would first enrol the avatar."""
    enrolled = cached_avatar(ROOT / "demo" / "speaker.mp4").is_file()
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if "browser" in fixtures:
            item.add_marker(pytest.mark.browser)
        if "avatar_path" in fixtures and not enrolled:
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI only tests that need a GPU may be skipped: tools/setup installs what the others need."""
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if terminal is None or not os.environ.get("CI"):
        return
    reasons = {report.nodeid: str(report.longrepr) for report in terminal.stats.get("skipped", [])}
    for test, reason in reasons.items():
        if not MAY_SKIP_IN_CI.search(reason):
            terminal.write_line(f"\n{test}: skipped in CI: {reason}; expected GPU tests alone to be skipped", red=True)
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="module", autouse=True)
def ordinary_scheduling():
    """Some libraries give a thread of root real-time priority, and with it everything that this thread starts later:
    SVT-AV1 does where an encoder is opened. Such a process starves all others of the machine."""
    before = os.sched_getscheduler(0)
    yield
    assert os.sched_getscheduler(0) == before, "a library changed the scheduling of this process"


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def speaker_video() -> Path:
    """The bundled synthetic speaker: 512 x 512, 25 fps, with sound."""
    return ROOT / "demo" / "speaker.mp4"


@pytest.fixture(scope="session")
def speech_wav() -> Path:
    """A bundled speech sample, 24 kHz mono."""
    return ROOT / "demo" / "speech_a.wav"


@pytest.fixture(scope="session")
def avatar_path(speaker_video: Path) -> Path:
    """A real avatar, enrolled from the first seconds of the bundled speaker; kept in build/ until weights or code that
    make it change."""
    avatar = cached_avatar(speaker_video)
    avatar.parent.mkdir(parents=True, exist_ok=True)
    with (avatar.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process of the same run may be enrolling it
        if not avatar.is_file():
            from precompute.enrolment import Enrolment

            excerpt = avatar.parent / "excerpt.mp4"
            copy_excerpt(speaker_video, excerpt, EXCERPT_S)
            Enrolment(excerpt, avatar).run()
    return avatar


def cached_avatar(video: Path) -> Path:
    return ROOT / "build" / "tests" / enrolment_key(video) / "speaker.avatar"


def enrolment_key(video: Path) -> str:
    """16 hex digits of what an avatar depends on: the video, the weights, and the code of enrolment and painting."""
    code = [path for files in ENROLMENT_CODE for path in ROOT.glob(files)]
    weights = [*ROOT.glob("engine/assets/*.safetensors"), *ROOT.glob("precompute/*.safetensors")]
    made_of = [video, *code, *weights]
    digest = hashlib.sha256(str(EXCERPT_S).encode())
    for path in sorted(made_of):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def copy_excerpt(source: Path, target: Path, seconds: float) -> None:
    """The first seconds of a video, copied packet by packet."""
    import av

    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        streams = {s.index: writer.add_stream_from_template(s) for s in reader.streams if s.type in ("video", "audio")}
        for packet in reader.demux(*(reader.streams[i] for i in streams)):
            if packet.dts is not None and packet.pts is not None and packet.pts * packet.time_base < seconds:
                packet.stream = streams[packet.stream.index]
                writer.mux(packet)


@pytest.fixture(scope="session")
def short_clip(speaker_video: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of the bundled speaker."""
    path = tmp_path_factory.mktemp("clip") / "a clip.mp4"
    copy_excerpt(speaker_video, path, 2.0)
    return path


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to the next timer, and that fails where nothing would ever happen again.

    Work for executors runs at once; `spend` inside it says how long it takes, and its result arrives so much later.
    """

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(JumpingSelector(self))

    def time(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        future, began = self.create_future(), self.now
        try:
            outcome = func(*args)
            deliver = lambda: future.cancelled() or future.set_result(outcome)  # noqa: E731
        except Exception as problem:
            error = problem
            deliver = lambda: future.cancelled() or future.set_exception(error)  # noqa: E731
        ended, self.now = self.now, began
        self.call_later(ended - began, deliver)
        return future


class JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("deadlock: every task waits and no timer is set")
        events = super().select(0)
        if not events:
            self._loop.now += max(0.0, timeout)
        return events


@pytest.fixture
def virtual() -> Callable[[Callable[[VirtualLoop], Coroutine[Any, Any, Any]]], Any]:
    """virtual(main): run `await main(loop)` on a virtual clock; fails on deadlock and on tasks left behind."""

    def run(main: Callable[[VirtualLoop], Coroutine[Any, Any, Any]]) -> Any:
        loop = VirtualLoop()
        problems: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: problems.append(context))
        try:
            result = loop.run_until_complete(main(loop))
            assert not asyncio.all_tasks(loop), "tasks were left behind"
            assert not problems, problems
            return result
        finally:
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.close()

    return run
