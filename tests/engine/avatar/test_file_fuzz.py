"""The .avatar reader under random damage: an avatar, or an AvatarFileError; never anything else, never for long."""

from __future__ import annotations

import json
import struct
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.avatar.avatar import Avatar
from engine.errors import AvatarFileError

QUICK = settings(max_examples=60, deadline=None, derandomize=True)
HEADERS = ("tracks.safetensors", "style.safetensors", "bank.safetensors")


@pytest.fixture(scope="module")
def members(avatar_path):
    """The members of a real avatar; its videos, which opening does not decode, are cut short to be quick."""
    with zipfile.ZipFile(avatar_path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    return members | {name: members[name][:1000] for name in ("base.mp4", "idle.mp4")}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "hostile.avatar"


def write(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def opens_or_refuses(path):
    try:
        Avatar.open(path)
    except AvatarFileError as refusal:
        assert str(path) in str(refusal) and len(str(refusal)) < 2_000


def test_the_parts_that_are_fuzzed_are_an_avatar(members, scratch):
    write(scratch, members)
    assert Avatar.open(scratch).frames > 0


@QUICK
@given(data=st.data())
def test_changed_and_missing_bytes_of_the_file(members, scratch, data):
    write(scratch, {name: part if len(part) < 100_000 else part[:20_000] for name, part in members.items()})
    damaged = bytearray(scratch.read_bytes())
    # The directory at the end and the headers are where it hurts; anywhere else a checksum fails.
    places = st.integers(0, len(damaged) - 1) | st.integers(max(0, len(damaged) - 700), len(damaged) - 1)
    for place in data.draw(st.lists(places, max_size=6)):
        damaged[place] = data.draw(st.integers(0, 255))
    scratch.write_bytes(damaged[: data.draw(st.just(len(damaged)) | st.integers(0, len(damaged)))])
    opens_or_refuses(scratch)


@pytest.mark.slow
@QUICK
@given(data=st.data())
def test_any_manifest(members, scratch, data):
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=5,
    )
    manifest = json.loads(members["manifest.json"])
    for key in data.draw(st.lists(st.sampled_from(sorted(manifest)), min_size=1, max_size=3)):
        manifest[key] = data.draw(values)
    write(scratch, members | {"manifest.json": json.dumps(manifest)})
    opens_or_refuses(scratch)


@pytest.mark.slow
@QUICK
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_as_the_manifest(members, scratch, manifest):
    write(scratch, members | {"manifest.json": manifest})
    opens_or_refuses(scratch)


@pytest.mark.slow
@QUICK
@given(data=st.data())
def test_changed_tensors(members, scratch, data):
    name = data.draw(st.sampled_from(HEADERS))
    part = bytearray(members[name])
    header = 8 + struct.unpack_from("<Q", part)[0]
    places = st.integers(0, header - 1) | st.integers(header, len(part) - 1)
    for place in data.draw(st.lists(places, min_size=1, max_size=4)):
        part[place] = data.draw(st.integers(0, 255))
    write(scratch, members | {name: bytes(part[: data.draw(st.just(len(part)) | st.integers(0, len(part)))])})
    opens_or_refuses(scratch)
