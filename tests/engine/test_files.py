"""Outputs replace only older files of their kind; nothing temporary survives its process."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time

import pytest

from engine.errors import OutputError
from engine.files import TEMPORARY, check_output, remove_abandoned, replaced, working_folder

VIDEO = b"\0\0\0\x20ftypisom an older video"
VIDEOS = (".mp4", ".mkv")


def write(output, content=b"new"):
    check_output(output, VIDEOS)
    with replaced(output) as temporary:
        temporary.write_bytes(content)


def test_an_older_file_of_the_kind_is_replaced_and_keeps_its_permissions(tmp_path):
    output = tmp_path / "out.mp4"
    output.write_bytes(VIDEO)
    output.chmod(0o640)
    write(output)
    assert output.read_bytes() == b"new" and stat.S_IMODE(output.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_the_permissions_that_the_umask_leaves(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        write(tmp_path / "out.mp4")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out.mp4").stat().st_mode) == mode


def test_a_link_is_followed_also_to_a_file_that_is_not_there_yet(tmp_path):
    (tmp_path / "videos").mkdir()
    target, link = tmp_path / "videos" / "real.mp4", tmp_path / "out.mp4"
    link.symlink_to(target)
    for content in (b"\0\0\0\x20ftyp first", b"second"):
        write(link, content)
        assert link.is_symlink() and target.read_bytes() == content
    assert os.listdir(tmp_path / "videos") == ["real.mp4"]


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "socket", "link to a device"])
def test_what_is_no_regular_file_is_refused(tmp_path, kind):
    output = tmp_path / "out.mp4"
    if kind == "pipe":
        os.mkfifo(output)
    elif kind == "folder":
        output.mkdir()
    elif kind == "socket":
        import socket

        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(output))
    elif kind == "device":
        output = type(tmp_path)("/dev/null")
    else:
        output.symlink_to("/dev/null")
    with pytest.raises(OutputError, match=f"is a {kind.rsplit(' ')[-1]}"):
        check_output(output, VIDEOS)


@pytest.mark.parametrize("content", [b"# notes\n", b"PK\3\4 an avatar", b"\x1a\x45\xdf\xa3 Matroska"])
def test_a_file_that_is_something_else_is_not_overwritten(tmp_path, content):
    output = tmp_path / "out.mp4"
    output.write_bytes(content)
    with pytest.raises(OutputError, match="holds something else than its name says"):
        check_output(output, VIDEOS)


def test_a_link_to_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "out.mp4").symlink_to(tmp_path / "notes.txt")
    with pytest.raises(OutputError, match=r"a link to .*notes\.txt.*ending in \.mp4"):
        check_output(tmp_path / "out.mp4", VIDEOS)


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    output = tmp_path / "out.mp4"
    output.write_bytes(VIDEO)
    with pytest.raises(OutputError, match="No space left"), replaced(output) as temporary:
        temporary.write_bytes(b"half")
        raise OSError(28, "No space left on device")
    assert output.read_bytes() == VIDEO and list(tmp_path.iterdir()) == [output]


def test_a_longest_name_can_be_replaced(tmp_path):
    write(tmp_path / ("n" * 251 + ".mp4"))


def test_a_full_temporary_disk_is_named_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(OutputError, match=rf"{tmp_path}.*No space left.*TMPDIR"), working_folder():
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


# ---- processes that end early

PROGRAM = """
import sys, tempfile, time
from pathlib import Path
from engine.files import replaced, working_folder
from engine.signals import EXIT_CODE, interruptible
tempfile.tempdir = sys.argv[1]
try:
    with interruptible(), working_folder() as folder, replaced(Path(sys.argv[2])) as temporary:
        (folder / "base.mp4").write_bytes(b"footage")
        temporary.write_bytes(b"half")
        print("begun", flush=True)
        time.sleep(60)
except KeyboardInterrupt:
    sys.exit(EXIT_CODE)
"""


@pytest.fixture
def begun(tmp_path):
    """A process that writes a file, and its folder for temporary files."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "tmp"), str(tmp_path / "out" / "x.mp4")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"begun\n"
    assert len(list((tmp_path / "tmp").iterdir())) == len(list((tmp_path / "out").iterdir())) == 1
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP", "QUIT", "USR1", "ALRM"])
def test_a_signal_leaves_nothing(tmp_path, begun, name):
    number = getattr(signal, f"SIG{name}")
    begun.send_signal(number)
    begun.send_signal(number)  # an impatient user
    _, errors = begun.communicate(timeout=30)
    assert begun.returncode == 130 and errors == b""
    assert list((tmp_path / "tmp").iterdir()) == list((tmp_path / "out").iterdir()) == []


def test_the_next_process_removes_what_a_killed_one_left_and_nothing_that_is_in_use(tmp_path, begun):
    remove_abandoned(tmp_path / "tmp")
    remove_abandoned(tmp_path / "out", hidden=True)
    assert list((tmp_path / "tmp").iterdir()) and list((tmp_path / "out").iterdir())  # its process lives
    begun.kill()
    begun.wait()
    (tmp_path / "tmp" / "personal").mkdir()
    remove_abandoned(tmp_path / "tmp")
    remove_abandoned(tmp_path / "out", hidden=True)
    assert os.listdir(tmp_path / "tmp") == ["personal"] and list((tmp_path / "out").iterdir()) == []


def test_an_ignored_signal_stays_ignored(tmp_path):
    """`nohup personastream dub …` survives the end of the terminal."""
    code = (
        "import os, signal; from engine.signals import interruptible\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with interruptible(): os.kill(os.getpid(), signal.SIGHUP)\n"
        "print('alive')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "alive\n"


@pytest.mark.slow
@pytest.mark.parametrize("command", [["precompute", "none.mp4"], ["streaming", "dub", "none.avatar", "none.wav"]])
@pytest.mark.parametrize("name", ["INT", "TERM"])
def test_a_signal_during_the_imports_prints_no_traceback(tmp_path, command, name):
    process = subprocess.Popen([sys.executable, "-m", *command], cwd=tmp_path, stderr=subprocess.PIPE)
    for wanted in (True, False):  # Python handles SIGINT from its start on, the command no longer
        while process.poll() is None and handles_interrupts(process.pid) != wanted:
            time.sleep(0.001)
    process.send_signal(getattr(signal, f"SIG{name}"))
    assert process.communicate(timeout=60)[1] == b"" and process.returncode != 0


def handles_interrupts(pid):
    with open(f"/proc/{pid}/status") as lines:
        caught = next(line.split()[1] for line in lines if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (signal.SIGINT - 1) & 1)


def test_an_empty_temporary_file_that_is_new_may_be_about_to_be_locked(tmp_path):
    (tmp_path / f"{TEMPORARY}new").mkdir()
    remove_abandoned(tmp_path)
    assert (tmp_path / f"{TEMPORARY}new").is_dir()
