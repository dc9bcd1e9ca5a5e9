"""The settings of a cluster, and its command line."""

from __future__ import annotations

import pytest

from engine.errors import SettingError
from streaming.cluster.config import ClusterConfig
from streaming.commands.cluster import with_default
from streaming.commands.main import main


@pytest.mark.parametrize(
    ("option", "value"),
    [("node_url", "http://{name}"), ("node_url", "{"), ("node_port", 70_000), ("nodes", -1), ("node_cpus", -2.0)],
)
def test_settings_out_of_range_are_refused_by_name(option, value):
    with pytest.raises(SettingError, match=f"--{option.replace('_', '-')}"):
        ClusterConfig(**{option: value})


def test_cluster_without_a_subcommand_serves():
    assert with_default(["cluster", "--nodes", "2", "a.avatar"]) == ["cluster", "serve", "--nodes", "2", "a.avatar"]
    for given in (
        ["cluster", "status"],
        ["cluster", "drain", "here"],
        ["cluster", "--help"],
        ["serve", "a.avatar"],
        [],
    ):
        assert with_default(given) == given


def test_a_cluster_that_others_reach_needs_a_key(monkeypatch, capsys):
    monkeypatch.delenv("PERSONASTREAM_API_KEY", raising=False)
    with pytest.raises(SystemExit) as ended:
        main(["cluster", "none.avatar", "--host", "0.0.0.0"])
    assert ended.value.code == 2 and "no key is set" in capsys.readouterr().err
