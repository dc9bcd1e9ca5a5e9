"""The lag between sound and picture of clips that were added after the others were measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.audio import read_speech
from engine.models.geometry import GeometryConfig, GeometryGenerator
from engine.models.speech import SpeechConfig, SpeechEncoder, extract
from engine.models.weights import default_path, load, load_face_model
from precompute.fit import FaceFit
from training.data.clips import COLUMNS, FIT_COLUMNS, Track, fit_path, read_all, save_fit, save_track, track_path
from training.geometry.generator import predict
from training.geometry.offsets import estimate_offsets

FRAMES, LAG_FRAMES = 120, 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory, speech_wav):
    """Data and runs with one new fit, whose lips are those of the engine's networks, late by LAG_FRAMES."""
    data, runs = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("runs")
    (data / "manifest.csv").write_text(",".join(COLUMNS) + "\n")
    row = "fits/new.safetensors,fits/new.opus,eva,train,en,4.8,200"
    (data / "fits.csv").write_text(f"{','.join(FIT_COLUMNS)}\n{row}\n")
    pcm = read_speech(speech_wav)[: FRAMES * 1920 : 3].astype(np.float32) / 32768
    model = load_face_model()
    encoder = load(SpeechEncoder, SpeechConfig, default_path("speech"))
    generator = load(GeometryGenerator, GeometryConfig, default_path("geometry"))
    offsets = predict(generator, model, extract(encoder, pcm), torch.zeros(len(model.shape_basis)), None)
    basis = model.expression_basis[:, model.lower].flatten(1)
    beta = torch.linalg.lstsq(basis.T, offsets.flatten(1).T).solution.T.roll(LAG_FRAMES, 0).numpy()
    nothing = np.zeros((FRAMES, 6), np.float32)
    (clip,) = read_all(data)
    fit = FaceFit(np.zeros((FRAMES, 50), np.float32), beta, nothing, np.zeros((FRAMES, 3), np.int32), *nothing.T[:2])
    save_fit(fit_path(runs, clip), fit, 0)
    save_track(track_path(runs, clip), Track(np.zeros((0, 478, 3), np.float32), (pcm * 32767).astype(np.int16)))
    return data, runs


def test_a_new_clip_is_measured_and_the_others_are_kept(folders):
    data, runs = folders
    (runs / "offsets.csv").write_text("clip,offset_frames,match,locked\nold,1.25,0.600,1\n")
    offsets = estimate_offsets(data, runs)
    assert offsets["old"].frames == 1.25
    assert offsets["new"].frames == pytest.approx(LAG_FRAMES, abs=0.3) and offsets["new"].locked
    assert "new," in (runs / "offsets.csv").read_text(), "measured once"


def test_without_new_clips_nothing_is_measured(folders):
    data, runs = folders
    (runs / "offsets.csv").write_text("clip,offset_frames,match,locked\nnew,-2.00,0.100,0\n")
    assert estimate_offsets(data, runs)["new"].frames == -2.0
