"""The public names of the engine, the page that shows them, and the example: all run as they stand."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import wave
from pathlib import Path

import cv2
import numpy as np
import pytest

import engine
from engine.audio import SAMPLE_RATE_HZ, read_speech
from engine.errors import AvatarFileError, SpeechFormatError

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "python.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def folder(avatar_path, speech_wav, tmp_path, monkeypatch):
    """The working folder, with anna.avatar and half a second of speech."""
    (tmp_path / "anna.avatar").symlink_to(avatar_path)
    with wave.open(str(tmp_path / "speech.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes(read_speech(speech_wav)[:24_000].tobytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_all_names_resolve_and_are_listed():
    assert all(getattr(engine, name).__name__ == name for name in engine.__all__)
    assert set(engine.__all__) <= set(dir(engine))
    with pytest.raises(AttributeError, match="'nothing'; its names are Avatar, Engine"):
        _ = engine.nothing


def test_importing_the_package_loads_neither_torch_nor_numpy():
    code = "import sys, engine, engine.errors; sys.exit(bool({'torch', 'numpy', 'av'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_the_page_runs_as_it_stands(folder, capsys, block):
    exec(compile(block, "docs/python.md", "exec"), {})
    shown = capsys.readouterr().out
    if "asyncio.run" in block:
        assert "PlaybackStarted(utterance='hello'" in shown and "interrupted=True" in shown
    if "except" in block:
        assert shown.startswith("avatar-file False nobody.avatar")


def test_the_page_names_all_public_names():
    missing = [name for name in engine.__all__ if f"`{name}`" not in PAGE and f"{name}(" not in PAGE]
    assert set(missing) <= {"Session", "Avatar"}, missing


def test_the_example_writes_the_pictures(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["speak.py", "anna.avatar", "speech.wav", "pictures"])
    example = ROOT / "examples" / "speak.py"
    runpy.run_path(str(example), run_name="__main__")
    pictures = sorted((folder / "pictures").iterdir())
    assert len(pictures) == 13 + 8 and "13 frames of speech in pictures" in capsys.readouterr().out
    assert cv2.imread(str(pictures[0])).shape == (512, 512, 3)
    assert len(example.read_text().splitlines()) <= 20


@pytest.mark.slow
def test_samples_and_files_and_opened_avatars_give_the_same_units(folder):
    pcm = read_speech(folder / "speech.wav")
    expected = list(engine.speak("anna.avatar", "speech.wav"))
    anna = engine.Avatar.open(folder / "anna.avatar")
    for speech in (pcm, pcm.astype(np.float32) / 32768):
        units = list(engine.speak(anna, speech))
        assert all(np.array_equal(a.image, b.image) for a, b in zip(units, expected, strict=True))
        assert all(np.array_equal(a.samples, b.samples) for a, b in zip(units, expected, strict=True))


@pytest.mark.parametrize("speech", [np.zeros((9, 2), np.int16), np.zeros(9), np.zeros(9, np.int32)])
def test_samples_of_another_kind_are_refused(folder, speech):
    with pytest.raises(SpeechFormatError, match=r"expected mono int16 or float32 \[N\] at 48 kHz"):
        engine.speak("anna.avatar", speech)


def test_a_missing_file_is_refused_before_the_first_unit(folder):
    with pytest.raises(AvatarFileError):
        engine.speak("nobody.avatar", "speech.wav")
    with pytest.raises(SpeechFormatError):
        engine.speak("anna.avatar", "nothing.wav")
