"""The parent of the process that dubs a video: what it makes of the child's events, errors, crashes and ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.child import WorkProgress, WorkRemark
from engine.dubbing import DubOptions, dub_video, encode_job, faces_of
from engine.errors import (
    CorruptVideoError,
    DependencyError,
    DubbingError,
    NoFaceError,
    PersonaStreamError,
    SettingError,
)

VIDEO, SPEECH, OUTPUT = Path("in.mp4"), {"auto": Path("a.wav")}, Path("out.mp4")
FINISHED = 'print(\'{"event": "finished", "report": {"output": "out.mp4", "pictures": 3}}\', flush=True)\n'
SLEEPS = """
import json, os, time
print(json.dumps({"event": "remark", "code": "pid", "text": str(os.getpid())}), flush=True)
time.sleep(60)
"""


def dub(code, listen=lambda event: None, **options):
    program = (sys.executable, "-c", code)
    return dub_video(VIDEO, SPEECH, OUTPUT, DubOptions(**options), listen, program=program)


def lives(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def gone(pid, within_s=20.0):
    deadline = time.monotonic() + within_s
    while lives(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not lives(pid)


def test_the_child_gets_the_job_as_a_line_and_its_events_and_report_come_back():
    code = "import json, sys; job = json.loads(sys.stdin.readline())\n"
    code += "print(json.dumps({'event': 'progress', 'stage': 'faces', 'done': 1, 'total': 4, 'left_s': 2.5}))\n"
    code += "print(json.dumps({'event': 'remark', 'code': 'cut', 'text': 'a cut', 'at_s': 1.5, 'new': 'field'}))\n"
    code += "print(json.dumps({'event': 'finished', 'report': job}))"
    events = []
    job = dub(code, events.append, length="cut", from_s=2.0, report=Path("r.html"))
    assert events == [WorkProgress("faces", 1, 4, 2.5), WorkRemark("cut", "a cut", 1.5)]
    assert job["video"] == "in.mp4" and job["speech"] == {"auto": "a.wav"} and job["output"] == "out.mp4"
    assert job["options"] == {
        "length": "cut",
        "from_s": 2.0,
        "to_s": None,
        "mix_db": None,
        "report": "r.html",
        "resume": False,
        "quality": "best",
    }


def test_names_that_are_no_text_reach_the_child():
    line = encode_job(Path(os.fsdecode(b"\xff.mp4")), SPEECH, OUTPUT, DubOptions())
    assert line.endswith(b"\n") and os.fsencode(json.loads(line)["video"]) == b"\xff.mp4"


@pytest.mark.parametrize(
    ("code", "kind", "at_s"),
    [("no-face", NoFaceError, None), ("corrupt-video", CorruptVideoError, 3.5), ("new-code", DubbingError, None)],
)
def test_an_error_of_the_child_keeps_its_type_message_and_time(code, kind, at_s):
    event = json.dumps({"event": "error", "code": code, "message": "in.mp4: why (at 3.50 s)", "at_s": at_s})
    with pytest.raises(kind, match=r"^in\.mp4: why \(at 3\.50 s\)$") as caught:
        dub(f"import sys; print({event!r}); sys.exit(2)")
    assert caught.value.code == code and getattr(caught.value, "at_s", None) == at_s


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "was ended by SIGSEGV and without"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL .*memory runs out.*try it again"),
        ("raise ZeroDivisionError('by nought')", "exit code 1 and without a result.*ZeroDivisionError: by nought$"),
        ("", "exit code 0 and without a result"),
        ("import sys; sys.exit(130)", "was interrupted; try it again"),
        ("print('hello')", "wrote b'hello.n', which is no event"),
        ("print('[' * 10**5)", "is no event"),
        ('print(\'{"event": "progress", "stage": 7}\')', "is no event"),
        ('print(\'{"event": "dance"}\')', "is no event"),
        ("import sys; sys.stdout.buffer.write(bytes(range(256)))", "is no event"),
    ],
)
def test_a_child_that_crashes_is_named(code, expected):
    with pytest.raises(DubbingError, match=rf"(?s)^in\.mp4: the dubbing process .*{expected}"):
        dub(code)


def test_a_child_that_crashes_after_its_result_has_done_its_work():
    assert dub(FINISHED + "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")["pictures"] == 3


def test_a_part_of_the_enrolment_stack_that_is_missing_is_named_with_the_remedy():
    with pytest.raises(DependencyError, match=r"no_such_stack is not installed; run `make setup`"):
        dub("import no_such_stack.part")
    with pytest.raises(DependencyError, match=r"engine\.no_such_module is not installed"):
        dub_video(VIDEO, SPEECH, OUTPUT, program=(sys.executable, "-m", "engine.no_such_module"))


def test_a_program_that_does_not_start_is_named():
    with pytest.raises(DubbingError, match="/none/python does not start .No such file"):
        dub_video(VIDEO, SPEECH, OUTPUT, program=("/none/python",))


def test_a_caller_that_stops_listening_ends_the_child():
    def stop(event):
        pids.append(int(event.text))
        raise KeyboardInterrupt

    pids = []
    with pytest.raises(KeyboardInterrupt):
        dub(SLEEPS, stop)
    assert not lives(*pids)


@pytest.mark.slow
def test_a_child_that_does_not_heed_sigterm_is_killed():
    def stop(event):
        pids.append(int(event.text))
        raise KeyboardInterrupt

    pids = []
    with pytest.raises(KeyboardInterrupt):
        dub("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEPS, stop)
    assert not lives(*pids)


PARENT = """
import sys
from pathlib import Path
from engine.dubbing import dub_video
from engine.signals import EXIT_CODE, interruptible
try:
    with interruptible():
        dub_video(Path("in.mp4"), {"auto": Path("a.wav")}, Path("out.mp4"),
                  listen=lambda event: print(event.text, flush=True), program=(sys.executable, "-c", sys.argv[1]))
except KeyboardInterrupt:
    sys.exit(EXIT_CODE)
"""
TIED = "import sys; from engine.signals import end_with; sys.stdin.readline(); end_with(sys.stdin.buffer)\n" + SLEEPS


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_child_does_not_outlive_its_parent(number):
    with subprocess.Popen([sys.executable, "-c", PARENT, TIED], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert lives(child)
        parent.send_signal(number)
        assert gone(child)
        assert parent.wait() == (-9 if number == signal.SIGKILL else 130)


def test_speeches_are_given_to_faces():
    assert faces_of("a.wav") == {"auto": Path("a.wav")} and faces_of(Path("a.wav"), 2) == {"2": Path("a.wav")}
    assert faces_of({1: "a.wav", 2: "b.wav"}) == {"1": Path("a.wav"), "2": Path("b.wav")}
    for speech, face in (({}, "auto"), ({0: "a.wav"}, "auto"), ("a.wav", 0), ({1: "a.wav"}, 1)):
        with pytest.raises(SettingError):
            faces_of(speech, face)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"from_s": -1.0}, "--from -1.0; expected seconds"),
        ({"from_s": float("nan")}, "--from nan"),
        ({"from_s": 3.0, "to_s": 3.0}, r"--to 3.0; expected .* after --from \(3\)"),
        ({"to_s": float("inf")}, "--to inf"),
        ({"mix_db": -3.0}, "--mix -3.0; expected 0 to 60 decibels"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_the_work(options, expected):
    with pytest.raises(SettingError, match=expected):
        DubOptions(**options)


def test_all_errors_of_the_engine_can_be_raised_by_their_codes():
    def below(kind):
        return [kind] + [each for child in kind.__subclasses__() for each in below(child)]

    kinds = [kind for kind in below(PersonaStreamError) if kind.__module__ == "engine.errors"]
    codes = [kind.code for kind in kinds]
    assert len(set(codes)) == len(codes), "an error would come back as another one"
