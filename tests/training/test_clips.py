"""The table of training clips: read whole, or refused with what it lacks."""

from __future__ import annotations

import pytest

from engine.errors import MediaError
from training.data.clips import COLUMNS, read_manifest

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
