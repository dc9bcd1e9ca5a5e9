"""The encoder's windows: the same numbers live and offline, nothing from beyond the lookahead."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from engine.models.int8 import available
from engine.models.speech import (
    FRAME_SAMPLES,
    SpeechConfig,
    SpeechEncoder,
    SpeechState,
    cut,
    extract,
    init_state,
    small_hubert,
)
from engine.models.weights import default_path, load, save

TINY = {
    **small_hubert(),
    "conv_dim": [16] * 7,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
SMALL = SpeechConfig(left_frames=9, hubert=TINY, frame_features=8)


@pytest.fixture(scope="module")
def encoder() -> SpeechEncoder:
    torch.manual_seed(0)
    return SpeechEncoder(SMALL).eval()


@pytest.fixture(scope="module")
def pcm() -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal(45 * FRAME_SAMPLES + 123)).astype(np.float32)


def _hear(encoder: SpeechEncoder, pcm: np.ndarray, state: SpeechState) -> tuple[torch.Tensor, SpeechState]:
    """What a live session does with the next sound: features [k * step, D] of the frames now complete."""
    windows, state = cut(pcm, state, SMALL)
    with torch.inference_mode():
        return torch.cat(
            [torch.empty(0, SMALL.features), *(encoder(torch.from_numpy(w)[None])[0] for w in windows)]
        ), state


def _streamed(encoder: SpeechEncoder, pcm: np.ndarray, chunk_samples: int) -> torch.Tensor:
    """pcm in chunks, then silence until the frame with its last sample has been heard."""
    state, parts = init_state(SMALL), []
    chunks = [pcm[i : i + chunk_samples] for i in range(0, len(pcm), chunk_samples)]
    for chunk in (*chunks, np.zeros(SMALL.window_samples, np.float32)):
        features, state = _hear(encoder, chunk, state)
        parts.append(features)
    return torch.cat(parts)[: -(-len(pcm) // FRAME_SAMPLES)]


@pytest.mark.parametrize("chunk_samples", [97, 640, 3001, 16_000])
def test_any_chunking_gives_the_same_bits(encoder: SpeechEncoder, pcm: np.ndarray, chunk_samples: int) -> None:
    assert torch.equal(_streamed(encoder, pcm, chunk_samples), _streamed(encoder, pcm, len(pcm)))


def test_offline_is_the_stream(encoder: SpeechEncoder, pcm: np.ndarray) -> None:
    offline = extract(encoder, pcm)
    assert offline.shape == (
        46,
        SMALL.features,
    )  # the frame of the last 123 samples included
    torch.testing.assert_close(offline, _streamed(encoder, pcm, 1000), atol=1e-5, rtol=1e-4)


def test_features_come_as_soon_as_the_lookahead_is_there(
    encoder: SpeechEncoder,
) -> None:
    needed = (SMALL.step_frames + SMALL.lookahead_frames) * FRAME_SAMPLES
    early, state = _hear(encoder, np.zeros(needed - 1, np.float32), init_state(SMALL))
    assert len(early) == 0
    assert len(_hear(encoder, np.zeros(1, np.float32), state)[0]) == SMALL.step_frames


def test_a_window_starts_where_the_last_one_stepped(encoder: SpeechEncoder) -> None:
    ramp = np.arange(40 * FRAME_SAMPLES, dtype=np.float32)
    windows, state = cut(ramp, init_state(SMALL), SMALL)
    assert (windows[0, : SMALL.left_frames * FRAME_SAMPLES] == 0).all()
    for i, window in enumerate(windows):
        assert window[-1] == ((i + 1) * SMALL.step_frames + SMALL.lookahead_frames) * FRAME_SAMPLES - 1
    assert len(state.pcm) < SMALL.window_samples


def test_nothing_is_heard_from_beyond_the_lookahead(encoder: SpeechEncoder, pcm: np.ndarray) -> None:
    changed = pcm.copy()
    changed[(8 + SMALL.lookahead_frames) * FRAME_SAMPLES :] = 0.3
    same, other = extract(encoder, pcm), extract(encoder, changed)
    assert torch.equal(same[:8], other[:8])
    assert not torch.allclose(same[8:12], other[8:12])


def test_streams_do_not_meet(encoder: SpeechEncoder, pcm: np.ndarray) -> None:
    first, second, made = init_state(SMALL), init_state(SMALL), []
    for i in range(0, len(pcm), 2000):
        features, first = _hear(encoder, pcm[i : i + 2000], first)
        made.append(features)
        _, second = _hear(encoder, pcm[::-1][i : i + 2000].copy(), second)
    features = torch.cat(made)
    assert len(features) > 30 and torch.equal(features, _streamed(encoder, pcm, 2000)[: len(features)])


def test_cutting_leaves_the_state_untouched(encoder: SpeechEncoder, pcm: np.ndarray) -> None:
    _, state = _hear(encoder, pcm[:5000], init_state(SMALL))
    before = state.pcm.copy()
    once, after = _hear(encoder, pcm[5000:], state)
    after.pcm[:] = 1.0
    assert np.array_equal(state.pcm, before) and torch.equal(_hear(encoder, pcm[5000:], state)[0], once)


@pytest.mark.parametrize("stable", [True, False])
def test_the_encoder_for_the_cpu_computes_the_same_features(stable: bool, pcm: np.ndarray) -> None:
    torch.manual_seed(0)
    whole = SpeechEncoder(replace(SMALL, hubert={**TINY, "do_stable_layer_norm": stable})).eval()
    windows = torch.from_numpy(cut(pcm, init_state(SMALL), SMALL)[0])
    with torch.inference_mode():
        torch.testing.assert_close(whole.for_cpu(int8=False)(windows), whole(windows), atol=1e-6, rtol=1e-5)


def test_the_encoder_for_the_cpu_leaves_the_whole_one_untouched(pcm: np.ndarray) -> None:
    whole = SpeechEncoder(SMALL).eval()
    names = list(whole.state_dict())
    whole.for_cpu(int8=available())
    assert list(whole.state_dict()) == names
    with torch.inference_mode():
        assert whole.all_frames(torch.zeros(1, SMALL.window_samples)).shape[1] == SMALL.window_frames


def test_no_sound_has_no_features(encoder: SpeechEncoder) -> None:
    assert extract(encoder, np.zeros(0, np.float32)).shape == (0, SMALL.features)


def test_embedded_weights_hear_speech_from_silence() -> None:
    trained = load(SpeechEncoder, SpeechConfig, default_path("speech"))
    assert trained.config == SpeechConfig()
    silence = extract(trained, np.zeros(16_000, np.float32))
    time = np.arange(16_000) / 16_000
    vowel = sum(np.sin(2 * np.pi * 120 * k * time) / k for k in range(1, 30)).astype(np.float32) * 0.05
    heard = extract(trained, vowel)
    assert silence.isfinite().all() and heard.isfinite().all()
    assert (silence[12:] - silence[12:].mean(0)).norm(dim=-1).mean() < 0.3 * (heard[12:] - silence[12:]).norm(
        dim=-1
    ).mean()


@pytest.fixture(scope="module", params=[("group", False), ("layer", True)])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the hub has them: one like hubert-base, one like hubert-large."""
    norm, normalise = request.param
    folder = tmp_path_factory.mktemp("hubert")
    torch.manual_seed(0)
    large = {"do_stable_layer_norm": True, "conv_bias": True} if norm == "layer" else {}
    sizes = {k: v for k, v in TINY.items() if k not in ("feat_extract_norm", "do_stable_layer_norm", "conv_bias")}
    HubertModel(HubertConfig(feat_extract_norm=norm, **large, **sizes)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=normalise).save_pretrained(folder)
    return folder


def test_a_public_checkpoint_is_an_encoder(checkpoint: Path, pcm: np.ndarray, tmp_path: Path) -> None:
    encoder = SpeechEncoder.of_checkpoint(checkpoint)
    windows = torch.from_numpy(pcm[: encoder.config.window_samples])[None]
    heard = torch.nn.functional.pad(windows, (80, 0))
    if encoder.config.normalise:
        heard = (heard - heard.mean()) / heard.std(correction=0)
    with torch.inference_mode():
        tokens = HubertModel.from_pretrained(checkpoint).eval()(heard).last_hidden_state[0]
        features = encoder(windows)
    left, step, ahead = encoder.config.left_frames, encoder.config.step_frames, encoder.config.lookahead_frames
    frames = (tokens[0::2] + tokens[1::2]) / 2
    expected = torch.cat([frames[left : left + step], frames[left + ahead : left + ahead + step]], -1)
    torch.testing.assert_close(features[0], expected, atol=1e-4, rtol=1e-3)

    path = tmp_path / "speech.safetensors"
    save(encoder, path, facts={})
    again = load(SpeechEncoder, SpeechConfig, path)
    torch.testing.assert_close(extract(again, pcm), extract(encoder, pcm), atol=2e-2, rtol=2e-2)  # fp16 on disk


def test_masked_frames_are_not_heard(encoder: SpeechEncoder, pcm: np.ndarray) -> None:
    frames = SMALL.window_frames
    masked = torch.zeros(1, frames, dtype=torch.bool)
    masked[:, 8:12] = True
    # the positional convolution and attention tell a masked frame of its neighbours, never of itself
    window = torch.from_numpy(pcm[: SMALL.window_samples])[None]
    other = window.clone()
    other[:, 9 * FRAME_SAMPLES : 10 * FRAME_SAMPLES] = 0.3  # the front end sees a token further on each side
    with torch.inference_mode():
        assert torch.allclose(encoder.tokens(window, masked), encoder.tokens(other, masked), atol=1e-5)
        assert not torch.allclose(encoder.tokens(window), encoder.tokens(other), atol=1e-3)
