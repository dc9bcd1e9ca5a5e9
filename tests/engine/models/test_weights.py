"""Weights on disk: what is loaded is what was saved, and anything else is refused with a remedy."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from engine.errors import WeightsError
from engine.models import weights


@dataclass(frozen=True, kw_only=True)
class Config:
    width: int = 4


class Network(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.linear = nn.Linear(config.width, 2)
        self.norm = nn.BatchNorm1d(config.width)


class Other(Network):
    pass


@pytest.fixture
def path(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "deep" / "network.safetensors"
    weights.save(Network(Config(width=6)), path, facts={"steps": "12"})
    return path


def rewritten(path, change):
    """The same file with its metadata or tensors changed."""
    with safe_open(path, "pt") as stored:
        metadata, tensors = dict(stored.metadata()), {n: stored.get_tensor(n) for n in stored.keys()}
    change(metadata, tensors)
    save_file(tensors, path, metadata=metadata)
    return path


def test_what_was_saved_comes_back_in_half_precision(path):
    torch.manual_seed(0)
    original, loaded = Network(Config(width=6)), weights.load(Network, Config, path)
    assert loaded.config == Config(width=6)
    for name, value in loaded.state_dict().items():
        expected = original.state_dict()[name]
        assert value.dtype == expected.dtype
        assert torch.equal(value, expected.half().float() if expected.is_floating_point() else expected)


def test_what_is_loaded_is_ready_to_be_used_and_not_trained(path):
    loaded = weights.load(Network, Config, path)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


def test_nothing_is_left_beside_the_file(path):
    assert [p.name for p in path.parent.iterdir()] == ["network.safetensors"]
    with safe_open(path, "pt") as stored:
        assert json.loads(stored.metadata()["facts"]) == {"steps": "12"}


def _wrong_format(metadata, tensors):
    metadata["format"] = "99"


def _no_config(metadata, tensors):
    del metadata["config"]


def _broken_config(metadata, tensors):
    metadata["config"] = "{"


def _config_of_another_version(metadata, tensors):
    metadata["config"] = json.dumps({"width": 6, "depth": 3})


def _config_of_another_size(metadata, tensors):
    metadata["config"] = json.dumps({"width": 8})


def _impossible_config(metadata, tensors):
    metadata["config"] = json.dumps({"width": "six"})


def _list_for_config(metadata, tensors):
    metadata["config"] = "[6]"


def _tensor_missing(metadata, tensors):
    del tensors["linear.bias"]


def _tensor_too_many(metadata, tensors):
    tensors["extra"] = torch.zeros(2)


def _tensor_of_another_shape(metadata, tensors):
    tensors["linear.bias"] = torch.zeros(3)


@pytest.mark.parametrize(
    "change",
    [
        _wrong_format,
        _no_config,
        _broken_config,
        _config_of_another_version,
        _config_of_another_size,
        _impossible_config,
        _list_for_config,
        _tensor_missing,
        _tensor_too_many,
        _tensor_of_another_shape,
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_its_name_and_a_remedy(path, change):
    with pytest.raises(WeightsError, match=r"network\.safetensors: .*(reinstall|train)"):
        weights.load(Network, Config, rewritten(path, change))


def test_another_network_is_refused(path):
    with pytest.raises(WeightsError, match="holds Network in format 1; expected Other"):
        weights.load(Other, Config, path)


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\xff" * 100])
def test_a_damaged_file_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"network\.safetensors: .*(reinstall|train)"):
        weights.load(Network, Config, path)


def test_a_file_cut_short_is_refused(path):
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        weights.load(Network, Config, path)


def test_a_missing_file_is_told_with_the_remedy(tmp_path):
    with pytest.raises(WeightsError, match="train them with `python -m training`"):
        weights.load(Network, Config, tmp_path / "none.safetensors")


def test_the_face_model_is_read_and_a_missing_or_damaged_one_refused_with_the_remedy(tmp_path):
    assert weights.load_face_model().mean.shape == (468, 3)
    path = tmp_path / "face_model.safetensors"
    contents = [None, b"", b"nonsense", weights.default_path("face_model").read_bytes()[:-100]]
    for content in contents:
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(WeightsError, match=r"face_model\.safetensors.*reinstall the package"):
            weights.load_face_model(path)
    save_file({"mean": torch.zeros(468, 3)}, path)
    with pytest.raises(WeightsError, match="not a readable face model"):
        weights.load_face_model(path)


def test_the_fingerprint_is_the_start_of_the_files_sha256(path):
    assert weights.fingerprint(path) == hashlib.sha256(path.read_bytes()).hexdigest()[:16]
