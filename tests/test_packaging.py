"""What pyproject.toml, constraints.txt and the model card promise of the installation is true."""

from __future__ import annotations

import hashlib
import re
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from streaming.webrtc.aiortc_private import TESTED

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
SET_UP = (
    "dev",
    "local",
    "enroll",
    "training",
    "export",
    "kokoro",
)  # tools/setup installs them, and takes no other pins
WEIGHTS = sorted([*(ROOT / "engine/assets").glob("*.safetensors"), *(ROOT / "precompute").glob("*.safetensors")])
END_OF_PYTHON_3_11 = datetime(2027, 10, 31, tzinfo=UTC)


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    return {canonicalize_name(name): release for name, release in (line.split("==") for line in lines)}


def requirements(*extras: str) -> list[Requirement]:
    wanted = [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    return [requirement for requirement in map(Requirement, wanted) if requirement.name != PROJECT["name"]]


def test_each_requirement_of_setup_is_pinned_to_a_release_that_it_allows():
    pinned = pins()
    for requirement in requirements(*SET_UP):
        release = pinned.get(canonicalize_name(requirement.name))
        assert release is not None and requirement.specifier.contains(release), f"{requirement}: pinned to {release}"


def test_no_pin_contradicts_an_extra_that_setup_leaves_out():
    pinned = pins()
    for requirement in requirements(*EXTRAS.keys() - {"livekit", "pipecat"}):  # theirs are environments of their own
        release = pinned.get(canonicalize_name(requirement.name))
        assert release is None or requirement.specifier.contains(release), f"{requirement}: pinned to {release}"


@pytest.mark.parametrize("path", WEIGHTS, ids=lambda path: path.stem)
def test_the_model_card_states_the_hash_of_each_weights_file(path: Path):
    card = (ROOT / "docs/model-card.md").read_text()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert re.search(rf"^\| `{path.stem}` \| `{digest}` \|", card, re.MULTILINE), (
        f"docs/model-card.md: {path.stem} is {digest}"
    )


def test_aiortc_is_pinned_to_the_release_whose_private_attributes_were_tried():
    pinned = {name: pins()[name] for name in TESTED}
    assert pinned == TESTED, (
        f"constraints.txt has {pinned}, streaming/webrtc/aiortc_private.py was tried with {TESTED}: run "
        "tests/streaming/webrtc and a browser with the new release, correct that file where an attribute differs, then "
        "change TESTED"
    )


def test_python_3_11_still_gets_security_fixes():
    oldest = min(Requirement(f"python{PROJECT['requires-python']}").specifier, key=lambda limit: limit.operator != ">=")
    assert oldest.version != "3.11" or datetime.now(UTC) < END_OF_PYTHON_3_11 - timedelta(days=90), (
        f"Python 3.11 ends on {END_OF_PYTHON_3_11:%d %B %Y} (PEP 664). Make 3.12 the oldest: requires-python and "
        "classifiers in pyproject.toml, PYTHON in the Makefile, python_version of mypy and target-version of ruff, the "
        "base image in deploy/Dockerfile, constraints.txt, README. mediapipe 0.10.21 has wheels for 3.12"
    )
