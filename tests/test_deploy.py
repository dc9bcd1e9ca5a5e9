"""The files of deploy/: they fit the schema of Ray, and the commands in them fit our command line."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import jsonschema
import pytest
import ray.autoscaler
import tyro
import yaml

from streaming.commands.cluster import ClusterDrain, ClusterServe
from streaming.commands.main import Command, with_default

DEPLOY = Path(__file__).parent.parent / "deploy"
FILES = [DEPLOY / "ray.yaml", DEPLOY / "kuberay.yaml"]


def serve_of(path: Path) -> ClusterServe:
    """The command that serves, parsed."""
    (line,) = re.findall(r"(?<=personastream )cluster [^\n']*", path.read_text())
    command = tyro.cli(Command, args=with_default(shlex.split(line)))
    assert isinstance(command, ClusterServe)
    return command


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_command_that_serves_fits_the_command_line(path):
    command = serve_of(path)
    assert command.server.host == "0.0.0.0" and command.cluster.nodes == 1


def test_the_file_for_ray_up_fits_rays_schema_and_its_head_has_no_node():
    config = yaml.safe_load((DEPLOY / "ray.yaml").read_text())
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    assert config["available_node_types"][config["head_node_type"]]["resources"] == {"CPU": 0}


def test_a_pod_ends_after_its_drain_and_is_ready_when_its_node_is():
    spec = yaml.safe_load((DEPLOY / "kuberay.yaml").read_text())["spec"]
    serve = serve_of(DEPLOY / "kuberay.yaml")
    head, worker = spec["headGroupSpec"]["template"]["spec"], spec["workerGroupSpecs"][0]["template"]["spec"]
    assert min(head["terminationGracePeriodSeconds"], worker["terminationGracePeriodSeconds"]) > serve.server.drain_s
    assert worker["hostNetwork"]
    ports = [pod["containers"][0]["readinessProbe"]["httpGet"]["port"] for pod in (head, worker)]
    assert ports == [serve.server.port, serve.cluster.node_port]
    drain = worker["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert tyro.cli(Command, args=with_default(drain[1:])) == ClusterDrain(node="here")
