"""The table of training clips: read whole, or refused with what it lacks."""

from __future__ import annotations

import wave

import numpy as np
import pytest
from safetensors.numpy import save_file

from engine.errors import MediaError
from training.data.clips import COLUMNS, FIT_COLUMNS, read_all, read_manifest
from training.data.prepare import adopt_fits
from training.geometry.corpus import load_examples

ROW = {
    "file": "clips/a.mp4",
    "kind": "real",
    "identity": "ada",
    "split": "train",
    "source": "lectures",
    "language": "en",
    "duration_s": "3.5",
    "face_px": "210",
}


def write(folder, row):
    (folder / "manifest.csv").write_text(f"{','.join(row)}\n{','.join(row.values())}\n")
    return folder


def test_a_row_becomes_a_clip(tmp_path):
    (clip,) = read_manifest(write(tmp_path, ROW))
    assert clip.path == tmp_path / "clips" / "a.mp4" and (clip.duration_s, clip.face_px) == (3.5, 210)


def test_fits_without_pictures_follow_the_clips(tmp_path):
    row = {name: value for name, value in ROW.items() if name in FIT_COLUMNS}
    row |= {"file": "fits/b.safetensors", "sound": "fits/b.opus"}
    (write(tmp_path, ROW) / "fits.csv").write_text(f"{','.join(row)}\n{','.join(row.values())}\n")
    clip, fitted = read_all(tmp_path)
    assert (clip.kind, clip.sound) == ("real", None)
    assert (fitted.kind, fitted.sound, fitted.name) == ("fitted", tmp_path / "fits" / "b.opus", "b")


def test_a_fit_and_its_sound_are_prepared_as_a_clip_is(tmp_path):
    data, runs = tmp_path / "data", tmp_path / "runs"
    (data / "fits").mkdir(parents=True)
    row = {name: value for name, value in ROW.items() if name in FIT_COLUMNS}
    row |= {"file": "fits/b.safetensors", "sound": "fits/b.wav"}
    (data / "manifest.csv").write_text(",".join(COLUMNS) + "\n")
    (data / "fits.csv").write_text(f"{','.join(row)}\n{','.join(row.values())}\n")
    start, frames = 1000, 40  # the first frame begins in the second frame of the sound
    beta = np.random.default_rng(0).standard_normal((frames, 50)).astype(np.float16)
    tensors = {"alpha": np.ones(50, np.float32), "beta": beta, "pose": np.zeros((frames, 6), np.float32)}
    tensors |= {"lip_error_px": np.zeros(frames, np.float16), "sound_start": np.array([start], np.int32)}
    save_file(tensors, data / "fits" / "b.safetensors")
    pcm = np.arange(start + frames * 640, dtype=np.int16)
    with wave.open(str(data / "fits" / "b.wav"), "wb") as sound:
        sound.setparams((1, 2, 16_000, 0, "NONE", ""))
        sound.writeframes(pcm.tobytes())
    adopt_fits(data, runs)
    (example,) = load_examples(data, runs)
    assert np.array_equal(example.beta.numpy(), beta.astype(np.float32)) and example.alpha.tolist() == [1.0] * 50
    assert abs(example.pcm[example.start * 640] * 32768 - start) < 2


@pytest.mark.parametrize("column", COLUMNS)
def test_a_missing_column_is_named_with_those_expected(tmp_path, column):
    row = {name: value for name, value in ROW.items() if name != column}
    with pytest.raises(MediaError, match=rf"lacks the column {column}; expected file, kind, identity, split"):
        read_manifest(write(tmp_path, row))


def test_an_empty_table_lacks_every_column(tmp_path):
    (tmp_path / "manifest.csv").touch()
    with pytest.raises(MediaError, match="lacks the column file, kind"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("text", "problem"), [("3.5,", "invalid literal"), ("long,210", "'long'"), ("3.5", "has no face_px")]
)
def test_a_row_that_cannot_be_read_is_named_with_its_line(tmp_path, text, problem):
    values = ",".join([*list(ROW.values())[:-2], text])
    (tmp_path / "manifest.csv").write_text(f"{','.join(ROW)}\n{values}\n")
    with pytest.raises(MediaError, match=f"line 2: .*{problem}"):
        read_manifest(tmp_path)
