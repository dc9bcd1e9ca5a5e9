"""The .avatar file: what is written is read; anything damaged, hostile or foreign is refused with the remedy."""

from __future__ import annotations

import json
import pickle
import zipfile
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from engine.avatar.avatar import Avatar
from engine.avatar.file import MEMBERS, AvatarContents, Bank, write_avatar
from engine.avatar.loop import Loop
from engine.avatar.manifest import Manifest
from engine.errors import AvatarFileError, OutputError

FRAMES, HEIGHT, WIDTH, ENTRIES = 30, 64, 96, 4
NETWORKS = {"face_model": "f" * 16, "geometry": "a" * 16, "renderer": "b" * 16}


def write_video(path, first_level):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "0", "g": "12", "crf": "10"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(FRAMES):
            image = np.full((HEIGHT, WIDTH, 3), first_level + 4 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contents")
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(*shape, generator=generator)

    return AvatarContents(
        manifest=Manifest(
            name="Ada Lovelace",
            width=WIDTH,
            height=HEIGHT,
            frames=FRAMES,
            loop=Loop("wrap", 2, 28),
            source_sha256="0" * 64,
            consent="recorded with consent",
            created="2026-01-01T00:00:00Z",
            networks=NETWORKS,
            summary={"usable_s": 1.2, "warnings": ["short"]},
        ),
        alpha=noise(FRAMES, 50),
        beta=noise(FRAMES, 50),
        pose=noise(FRAMES, 6),
        crop=torch.tensor([[3, -2, 40]] * FRAMES, dtype=torch.int32),
        style=noise(64),
        rest_beta=noise(50),
        persona=0.1 * noise(8, 9),
        bank=Bank(
            crops=torch.randint(0, 256, (ENTRIES, 256, 256, 3), generator=generator).to(torch.uint8),
            alpha=noise(ENTRIES, 50),
            beta=noise(ENTRIES, 50),
            pose=noise(ENTRIES, 6),
            frames=torch.tensor([1, 5, 8, 29], dtype=torch.int32),
        ),
        base=write_video(folder / "base.mp4", 20),
        idle=write_video(folder / "idle.mp4", 100),
        report_html="<!doctype html><p>fine",
        thumbnail_jpeg=b"\xff\xd8picture",
    )


@pytest.fixture(scope="module")
def good(contents, tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "ada.avatar"
    write_avatar(path, contents)
    return path


def members_of(path):
    with zipfile.ZipFile(path) as archive:
        return {entry.filename: archive.read(entry) for entry in archive.infolist()}


def rebuild(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_what_was_written_is_read_back(good, contents):
    avatar = Avatar.open(good, networks=NETWORKS)
    assert avatar.manifest == contents.manifest
    assert (avatar.name, avatar.width, avatar.height, avatar.frames) == ("Ada Lovelace", WIDTH, HEIGHT, FRAMES)
    for name in ("alpha", "beta", "pose", "crop", "style", "rest_beta", "persona"):
        assert torch.equal(getattr(avatar, name), getattr(contents, name)), name
    for name in ("crops", "alpha", "beta", "pose", "frames"):
        assert torch.equal(getattr(avatar.bank, name), getattr(contents.bank, name)), name
    assert avatar.thumbnail_jpeg == contents.thumbnail_jpeg
    assert avatar.report_html() == contents.report_html


def test_a_file_from_before_personas_has_none(good, tmp_path):
    members = members_of(good)
    look = load_tensors(members["style.safetensors"])
    del look["persona"]
    old = rebuild(tmp_path / "old.avatar", members | {"style.safetensors": save_tensors(look)})
    assert not Avatar.open(old, networks=NETWORKS).persona.any()


def test_references_of_512_px_are_read_as_they_are_or_halved(contents, tmp_path):
    path, crops = tmp_path / "fine.avatar", contents.bank.crops
    fine = crops.repeat_interleave(2, 1).repeat_interleave(2, 2)
    write_avatar(path, replace(contents, bank=replace(contents.bank, crops=fine)))
    assert torch.equal(Avatar.open(path, networks=NETWORKS).bank.crops, fine)
    fast = Avatar.open(path, quality="fast", networks=NETWORKS)
    assert torch.equal(fast.bank.crops, crops) and torch.equal(fast.bank.pose, contents.bank.pose)


def test_references_of_256_px_are_the_same_in_any_quality(good, contents):
    for quality in ("best", "fast"):
        assert torch.equal(Avatar.open(good, quality=quality, networks=NETWORKS).bank.crops, contents.bank.crops)


def test_both_videos_are_read_in_place(good):
    avatar = Avatar.open(good, networks=NETWORKS)
    with avatar.open_base() as base, avatar.open_idle() as idle:
        for index in (7, 6, 29, 0):
            assert abs(float(base.read(index).mean()) - (20 + 4 * index)) < 2
            assert abs(float(idle.read(index).mean()) - (100 + 4 * index)) < 2


def test_it_is_a_plain_uncompressed_zip_without_pickles(good):
    with zipfile.ZipFile(good) as archive:
        assert set(archive.namelist()) == set(MEMBERS)
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        assert json.loads(archive.read("manifest.json"))["format"] == 1
        assert "quality" in json.loads(archive.read("manifest.json"))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(good, contents, tmp_path):
    path = tmp_path / "ada.avatar"
    path.write_bytes(b"the old one")
    broken = replace(contents, idle=tmp_path / "never made.mp4")
    with pytest.raises(OutputError):
        write_avatar(path, broken)
    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_enrolment_replaces_the_old_file(contents, tmp_path):
    path = tmp_path / "ada.avatar"
    path.write_bytes(b"the old one")
    write_avatar(path, contents)
    assert Avatar.open(path, networks=NETWORKS).frames == FRAMES
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("network", sorted(NETWORKS.keys() - {"renderer"}))
def test_an_avatar_made_with_other_weights_is_refused(good, network):
    with pytest.raises(AvatarFileError, match=rf"{network}.*enrol the speaker again"):
        Avatar.open(good, networks=NETWORKS | {network: "c" * 16})


def test_an_avatar_that_an_earlier_renderer_enrolled_opens(good):
    with Avatar.open(good, networks=NETWORKS | {"renderer": "c" * 16}).open_idle() as idle:
        assert idle.read(0).ndim == 3


def test_a_missing_file_is_named_with_the_remedy(tmp_path):
    with pytest.raises(AvatarFileError, match=r"no such file.*precompute"):
        Avatar.open(tmp_path / "nobody.avatar", networks=NETWORKS)


@pytest.mark.parametrize("member", sorted(MEMBERS))
def test_a_missing_member_is_refused(good, tmp_path, member):
    members = members_of(good)
    del members[member]
    with pytest.raises(AvatarFileError, match=f"lacks {member}"):
        Avatar.open(rebuild(tmp_path / "x.avatar", members), networks=NETWORKS)


def test_any_damaged_byte_range_is_refused(good, tmp_path):
    data = good.read_bytes()
    for place in range(100, len(data), len(data) // 40):
        path = tmp_path / "x.avatar"
        path.write_bytes(data[:place] + bytes(64) + data[place + 64 :])
        if path.read_bytes() == data:
            continue
        with pytest.raises(AvatarFileError):
            Avatar.open(path, networks=NETWORKS)


@pytest.mark.parametrize("length", [0, 10, 1000, 100_000, -1])
def test_a_truncated_file_is_refused(good, tmp_path, length):
    path = tmp_path / "x.avatar"
    path.write_bytes(good.read_bytes()[:length])
    with pytest.raises(AvatarFileError, match="enrol the speaker again"):
        Avatar.open(path, networks=NETWORKS)


@pytest.mark.parametrize("data", [b"", b"PK\5\6" + bytes(18), b"\x80\x04not a zip" * 100, pickle.dumps({"a": 1})])
def test_something_else_is_refused(tmp_path, data):
    path = tmp_path / "x.avatar"
    path.write_bytes(data)
    with pytest.raises(AvatarFileError):
        Avatar.open(path, networks=NETWORKS)


@pytest.mark.parametrize("extra", ["../../etc/cron.d/x", "/etc/passwd", "notes.txt", "tracks.pkl"])
def test_unknown_members_are_refused(good, tmp_path, extra):
    with pytest.raises(AvatarFileError, match="too many|unknown"):
        Avatar.open(rebuild(tmp_path / "x.avatar", members_of(good) | {extra: b"x"}), networks=NETWORKS)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_same_member_twice_is_refused(good, tmp_path):
    path = rebuild(tmp_path / "x.avatar", members_of(good))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("manifest.json", b"{}")
    with pytest.raises(AvatarFileError, match="twice"):
        Avatar.open(path, networks=NETWORKS)


def test_a_compressed_archive_is_refused_before_it_is_unpacked(good, tmp_path):
    bomb = members_of(good) | {"report.html": bytes(20_000_000)}
    path = rebuild(tmp_path / "x.avatar", bomb, zipfile.ZIP_DEFLATED)
    with pytest.raises(AvatarFileError, match="compressed"):
        Avatar.open(path, networks=NETWORKS)


def test_a_member_beyond_its_limit_is_refused(good, tmp_path):
    path = rebuild(tmp_path / "x.avatar", members_of(good) | {"thumbnail.jpg": bytes(5 << 20)})
    with pytest.raises(AvatarFileError, match="thumbnail.jpg has"):
        Avatar.open(path, networks=NETWORKS)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", 2),
        ("format", None),
        ("fps", 30),
        ("width", 97),
        ("width", 10**9),
        ("height", -64),
        ("height", "64"),
        ("frames", FRAMES + 1),
        ("frames", True),
        ("frames", 10**12),
        ("loop", {"mode": "wrap", "start": 5, "stop": 5}),
        ("loop", {"mode": "eval", "start": 0, "stop": 5}),
        ("loop", {"mode": "wrap", "start": 0, "stop": FRAMES + 1}),
        ("loop", None),
        ("name", "../../x"),
        ("name", ""),
        ("name", 7),
        ("consent", None),
        ("networks", None),
        ("networks", []),
        ("quality", "good"),
    ],
)
def test_a_manifest_out_of_its_limits_is_refused(good, tmp_path, key, value):
    members = members_of(good)
    manifest = json.loads(members["manifest.json"]) | {key: value}
    members["manifest.json"] = json.dumps(manifest).encode()
    path = rebuild(tmp_path / "x.avatar", members)
    with pytest.raises(AvatarFileError, match="enrol the speaker again"):
        Avatar.open(path, networks=NETWORKS).open_base()


@pytest.mark.parametrize("text", [b"[]", b"not json", b"\xff\xfe", b'"x"', b"[" * 200_000, b"9" * 5000])
def test_a_manifest_that_is_no_object_is_refused(good, tmp_path, text):
    path = rebuild(tmp_path / "x.avatar", members_of(good) | {"manifest.json": text})
    with pytest.raises(AvatarFileError):
        Avatar.open(path, networks=NETWORKS)


@pytest.mark.parametrize(
    ("member", "name", "change"),
    [
        ("tracks.safetensors", "alpha", lambda t: t[:-1]),
        ("tracks.safetensors", "alpha", lambda t: t.double()),
        ("tracks.safetensors", "beta", lambda t: t[:, :, None]),
        ("tracks.safetensors", "beta", lambda t: t[:, :0]),
        ("tracks.safetensors", "pose", lambda t: t * float("nan")),
        ("tracks.safetensors", "pose", None),
        ("tracks.safetensors", "alpha", lambda t: t[:, :-1]),
        ("tracks.safetensors", "beta", lambda t: torch.cat([t, t], 1)),
        ("tracks.safetensors", "alpha", lambda t: t * 1000),
        ("tracks.safetensors", "pose", lambda t: t * 100),
        ("tracks.safetensors", "crop", lambda t: t * 0),
        ("tracks.safetensors", "crop", lambda t: t * 10**7),
        ("tracks.safetensors", "crop", lambda t: t * 0 + 8193),
        ("tracks.safetensors", "crop", lambda t: t.clone().index_fill_(1, torch.tensor([0]), -(2**31))),
        ("style.safetensors", "style", lambda t: t / 0),
        ("style.safetensors", "style", lambda t: t * 1e30),
        ("style.safetensors", "rest_beta", lambda t: t[:-1]),
        ("style.safetensors", "rest_beta", lambda t: t + 101),
        ("bank.safetensors", "crops", lambda t: t[:, :128]),
        ("bank.safetensors", "crops", lambda t: t[:0]),
        ("bank.safetensors", "crops", lambda t: t[:, :128, :128]),
        ("bank.safetensors", "crops", lambda t: t.repeat(1, 2, 1, 1)),
        ("bank.safetensors", "crops", lambda t: t.repeat(1, 1, 2, 1)),
        ("bank.safetensors", "crops", lambda t: t.repeat(1, 4, 4, 1)),
        ("bank.safetensors", "frames", lambda t: t + FRAMES),
        ("bank.safetensors", "beta", lambda t: t[:-1]),
        ("bank.safetensors", "alpha", lambda t: t[:, :-1]),
        ("bank.safetensors", "beta", lambda t: t * 1e6),
        ("bank.safetensors", "pose", lambda t: t + 11),
    ],
)
def test_tensors_of_another_shape_type_or_range_are_refused(good, tmp_path, member, name, change):
    members = members_of(good)
    tensors = load_tensors(members[member])
    if change is None:
        del tensors[name]
    else:
        tensors[name] = change(tensors[name]).contiguous()
    path = rebuild(tmp_path / "x.avatar", members | {member: save_tensors(tensors)})
    with pytest.raises(AvatarFileError, match=r"enrol the speaker again"):
        Avatar.open(path, networks=NETWORKS)


def test_a_pickle_in_place_of_tensors_is_refused_unopened(good, tmp_path):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("the pickle was executed",)

    path = rebuild(tmp_path / "x.avatar", members_of(good) | {"style.safetensors": pickle.dumps(Trap())})
    with pytest.raises(AvatarFileError):
        Avatar.open(path, networks=NETWORKS)


def test_a_damaged_video_is_refused_when_it_is_opened(good, tmp_path):
    path = rebuild(tmp_path / "x.avatar", members_of(good) | {"idle.mp4": b"not a video" * 50})
    with pytest.raises(AvatarFileError, match="enrol the speaker again"):
        Avatar.open(path, networks=NETWORKS).open_idle()
