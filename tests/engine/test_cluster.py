"""Files as tasks of a Ray cluster."""

from __future__ import annotations

import io
import os
from functools import partial
from pathlib import Path

import pytest
from cluster_work import join
from rich.console import Console

from engine.cluster import FileTask, joined, run_tasks
from engine.commands.dub import Dub
from engine.errors import ClusterError, SettingError
from precompute.command import Precompute, run

HERE = Path(__file__).parent


@pytest.mark.slow
def test_files_are_done_by_tasks_again_after_a_crash_and_a_bad_one_stops_no_other(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "local")  # not the cluster of another test
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # Ray would write a token into the home folder
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])))
    texts = {"one": "1", "two": "crash", "three": "bad", "common": "c"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    names = ["one", "two", "three"]
    tasks = [FileTask((tmp_path / name, tmp_path / "common"), tmp_path / f"{name}.out") for name in names]
    told = io.StringIO()
    with joined(None, start=True):
        code = run_tasks(partial(join, tmp_path / "mark"), tasks, Console(file=told, width=200))
    assert code == 2
    assert (tmp_path / "one.out").read_text() == "1+c"
    assert (tmp_path / "two.out").read_text() == "crash+c" and (tmp_path / "mark").exists()
    assert not (tmp_path / "three.out").exists() and "three: bad" in told.getvalue()
    assert "3/3" in told.getvalue()


def test_an_address_without_ray_is_refused_at_once(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ClusterError, match="ray start --head"), joined("127.0.0.1:9", start=False):
        pass


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (Dub(source=Path("a.avatar"), speech=Path("a.wav"), more=(Path("b.wav"),)), "2 sound files"),
        (Dub(source=Path("a.avatar"), speech=Path("a.wav"), cluster=True), "expected a folder"),
        (Dub(source=Path("a.avatar"), speech=Path("a.wav"), cluster=True, json=True), "--json"),
        (
            Dub(source=Path("a"), speech=Path("a.wav"), more=(Path("b/a.wav"),), cluster=True, output=Path("o")),
            "the same name",
        ),
    ],
)
def test_dubs_that_do_not_fit_a_cluster_are_refused(command, said):
    with pytest.raises(SettingError, match=said):
        command.run()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (Precompute(video=Path("a.mp4"), more=(Path("b.mp4"),)), "or --cluster"),
        (Precompute(video=Path("a.mp4"), more=(Path("b/a.mov"),), output=Path("o"), cluster=True), "the same name"),
    ],
)
def test_enrolments_that_do_not_fit_a_cluster_are_refused(config, said):
    told = io.StringIO()
    assert run(config, Console(file=told, width=200)) == 2
    assert said in told.getvalue()
