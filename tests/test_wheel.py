"""The wheel, in an environment of its own: what it holds, what it says of itself, and that its commands work."""

from __future__ import annotations

import email
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
import venv
import wave
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
PACKAGES = ("engine", "precompute", "streaming", "training")
SOURCES = (*PACKAGES, "demo", "docs", "LICENSES", "LICENSE", "pyproject.toml")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of the sources: setuptools writes beside them."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        source, copy = ROOT / name, folder / "sources" / name
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            copy.parent.mkdir(exist_ok=True)
            shutil.copy(source, copy)
    build = (*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(folder / "sources"))
    subprocess.run(build, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory) -> Path:
    """The folder of the wheel's commands, installed into an environment that borrows the libraries of this one."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=False)
    programs = place / "bin"
    subprocess.run((*PIP[:3], f"--python={programs}/python", "install", "-q", "--no-deps", str(wheel)), check=True)
    (site,) = place.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    return programs


def run(programs: Path, name: str, *arguments: str | Path, folder: Path) -> str:
    """The output of one of the wheel's commands, which is given none of this project's files by its environment."""
    done = subprocess.run(
        [programs / name, *arguments],
        cwd=folder,
        env=own_environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def own_environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return kept | {"XDG_CACHE_HOME": str(folder / "cache"), "COLUMNS": "200"}


def test_the_wheel_holds_every_file_of_its_packages_and_the_demo(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    sources = [path for package in PACKAGES for path in (ROOT / package).rglob("*")]
    wanted = {str(path.relative_to(ROOT)) for path in sources if path.is_file() and "__pycache__" not in path.parts}
    assert wanted <= set(names), wanted - set(names)
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    assert {Path(name).name for name in names if "share/personastream/demo" in name} == {
        "speaker.mp4", "speech_a.wav", "speech_b.wav",
    }  # fmt: skip
    assert not [name for name in names if name.startswith(("tests", "benchmarks"))]


def test_the_metadata_tells_the_weights_licence_from_the_codes_and_its_page_has_no_link_into_the_project(wheel):
    with zipfile.ZipFile(wheel) as archive:
        folder = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"
        metadata = email.message_from_bytes(archive.read(f"{folder}/METADATA"))
        licences = [name for name in archive.namelist() if name.startswith(f"{folder}/licenses/")]
    assert metadata["License-Expression"] == "Apache-2.0 AND LicenseRef-personastream-weights AND CC0-1.0"
    assert {Path(name).name for name in licences} == {"LICENSE", "LicenseRef-personastream-weights.txt"}
    page = str(metadata.get_payload())
    assert "LicenseRef-personastream-weights" in page
    assert not re.search(r"\]\((?!https?:)", page), "a link that leads nowhere on an index"


def test_the_installed_commands_enrol_serve_and_dub(programs, short_clip, speech_wav, tmp_path):
    assert run(programs, "personastream", "--version", folder=tmp_path).startswith("personastream ")
    origin = run(programs, "python", "-P", "-c", "import engine; print(engine.__file__)", folder=tmp_path)
    assert Path(origin).is_relative_to(programs.parent)
    findings = run(programs, "personastream", "doctor", folder=tmp_path)
    assert "networks" in findings and "research and evaluation" in findings
    avatar, clip = tmp_path / "me.avatar", tmp_path / "out.mp4"
    run(programs, "precompute", short_clip, "-o", avatar, folder=tmp_path)
    run(programs, "personastream", "dub", avatar, shortened(speech_wav, tmp_path), "-o", clip, folder=tmp_path)
    assert clip.stat().st_size > 10_000
    command = [programs / "personastream", "serve", avatar, "--port", "0"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=tmp_path, env=own_environment(tmp_path), stdout=pipe, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            first = server.stdout.readline()
            assert "research and evaluation" in first
            with urllib.request.urlopen(f"{first.split()[-1]}v1/avatars") as answer:
                assert [each["name"] for each in json.load(answer)["avatars"]] == ["me"]
            with urllib.request.urlopen(first.split()[-1]) as page:
                assert b"<html" in page.read()
            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=60) == 0
        finally:
            server.kill()


def test_the_demo_finds_its_speaker_in_the_installation(programs, tmp_path):
    code = "from streaming.commands.demo import demo_folder; print(demo_folder())"
    folder = Path(run(programs, "python", "-P", "-c", code, folder=tmp_path).strip())
    assert folder == programs.parent / "share" / "personastream" / "demo"


def shortened(speech: Path, folder: Path) -> Path:
    """The first second of a sound file."""
    path = folder / "second.wav"
    with wave.open(str(speech)) as source, wave.open(str(path), "wb") as target:
        target.setparams(source.getparams())
        target.writeframes(source.readframes(source.getframerate()))
    return path
