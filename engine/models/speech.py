"""PCM to speech features at 25 Hz, live and offline through the same windows (§3.1, style-aware audio encoding).

The encoder is a HuBERT (Hsu et al. 2021) over windows on the absolute frame grid: `left` frames of context,
`step` new frames and `lookahead` frames, 640 samples each, and returns the features of the new frames. Before the
stream's first sample and after its last one there is silence.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from engine.config import WindowConfig
from engine.models.int8 import quantise

Samples = npt.NDArray[np.float32]

RATE_HZ = 16_000
FRAME_SAMPLES = 640  # 40 ms at 16 kHz
HOP_SAMPLES = 160
FFT_SAMPLES = 512
STFT_WINDOW_SAMPLES = 400
# Convolutions on the waveform span 400 samples and step by 320. With a quarter of a token before the window, a frame's
# two tokens cover the frame and nothing after it.
LEAD_SAMPLES = 80
FRAME_TOKENS = 2


def small_hubert() -> dict[str, Any]:
    """The embedded network as arguments of `transformers.HubertConfig`: 8 layers of 320, and a positional convolution
    of 16 tokens; the public models' spans 1.3 s on each side."""
    return {
        "conv_dim": [256] * 7,  # the last is the width of the layers' input; the others do not exist with mel_bins
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
        "num_conv_pos_embeddings": 16,
        "hidden_size": 320,
        "intermediate_size": 1280,
        "num_hidden_layers": 8,
        "num_attention_heads": 5,
        "layerdrop": 0.0,
        "hidden_dropout": 0.0,
        "activation_dropout": 0.0,
        "attention_dropout": 0.0,
        "feat_proj_dropout": 0.0,
    }


@dataclass(frozen=True, kw_only=True)
class SpeechConfig:
    """Shape of the network and the windows that its weights were trained under.

    `hubert`: arguments of `transformers.HubertConfig`. `mel_bins`: bands of the log-mel input; 0: waveform input, as
    for the public checkpoints (with `normalise`, of mean 0 and deviation 1 in each window).
    """

    left_frames: int = WindowConfig.left_frames
    step_frames: int = WindowConfig.step_frames
    lookahead_frames: int = WindowConfig.lookahead_frames
    hubert: dict[str, Any] = field(default_factory=small_hubert)
    mel_bins: int = 80
    normalise: bool = False
    frame_features: int = 160

    @property
    def features(self) -> int:
        """D: the features of a frame and of the frame `lookahead_frames` later."""
        return 2 * self.frame_features

    @property
    def window_frames(self) -> int:
        return self.left_frames + self.step_frames + self.lookahead_frames

    @property
    def window_samples(self) -> int:
        return self.window_frames * FRAME_SAMPLES

    @property
    def algorithmic_latency_ms(self) -> int:
        """Speech that must have arrived before the first frame of a step can be computed."""
        return (self.step_frames + self.lookahead_frames) * 40


def mel_filters(bins: int) -> Tensor:
    """Triangular filters [FFT_SAMPLES / 2 + 1, bins] on the mel scale (O'Shaughnessy 1987), 0-8 kHz, of unit sum."""
    edges_mel = torch.linspace(0, 2595 * math.log10(1 + RATE_HZ / 2 / 700), bins + 2)
    edges_hz = 700 * (10 ** (edges_mel / 2595) - 1)
    frequency = torch.linspace(0, RATE_HZ / 2, FFT_SAMPLES // 2 + 1)[:, None]
    low, middle, high = edges_hz[:-2], edges_hz[1:-1], edges_hz[2:]
    triangles = torch.minimum((frequency - low) / (middle - low), (high - frequency) / (high - middle)).clamp_min(0)
    return triangles / triangles.sum(0).clamp_min(1e-3)


class MelFrontEnd(nn.Module):
    """Replaces HuBERT's seven convolutions on the waveform by log-mel and two, to 50 Hz; on a two-core budget it learns
    twice as fast at a tenth of the cost (docs/training-log.md)."""

    mel: Tensor
    taper: Tensor

    def __init__(self, bins: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mel", mel_filters(bins), persistent=False)
        self.register_buffer("taper", torch.hann_window(STFT_WINDOW_SAMPLES), persistent=False)
        self.conv1 = nn.Conv1d(bins, width, 3, stride=2, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, padding=1)

    def log_mel(self, windows: Tensor) -> Tensor:
        """windows [B, N] in [-1, 1] to [B, mel_bins, N / 160]; about -2 (silence) to 2 (full scale)."""
        windows = nn.functional.pad(windows.float(), (STFT_WINDOW_SAMPLES - HOP_SAMPLES, 0))
        frames = windows.unfold(-1, STFT_WINDOW_SAMPLES, HOP_SAMPLES) * self.taper
        real, imaginary = torch.view_as_real(torch.fft.rfft(frames, n=FFT_SAMPLES)).unbind(-1)
        power = (real.square() + imaginary.square()) @ self.mel  # a third of the time of abs()
        decades: Tensor = power.clamp_min(1e-5).log10()
        return (decades + 1).transpose(1, 2) / 2

    def forward(self, windows: Tensor) -> Tensor:
        """windows [B, N] to [B, width, N / 320]."""
        x = nn.functional.gelu(self.conv1(self.log_mel(windows)))
        features: Tensor = nn.functional.gelu(self.conv2(x))
        return features


class WindowLayer(nn.Module):
    """A layer of a HuBERT with the norms before attention and feed-forward, for windows without masks, from `layer`.

    Queries, keys and values come from one product. tokens: only the last ones of the window are computed; they attend
    to the whole window.
    """

    def __init__(self, layer: Any, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        attention, feed_forward = layer.attention, layer.feed_forward
        self.heads: int = attention.num_heads
        self.norm, self.mix = layer.layer_norm, _stacked(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out, self.hidden_norm = attention.out_proj, layer.final_layer_norm
        self.expand, self.contract = feed_forward.intermediate_dense, feed_forward.output_dense
        self.activation = feed_forward.intermediate_act_fn

    def forward(self, hidden: Tensor, **_: Any) -> tuple[Tensor]:
        """hidden [B, F, W] to [B, tokens, W], as `HubertModel` calls its layers."""
        query, key, value = self.mix(self.norm(hidden)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query[:, :, -self.tokens :], key, value)
        hidden = hidden[:, -self.tokens :] + self.out(mixed.transpose(1, 2).flatten(2))
        return (hidden + self.contract(self.activation(self.expand(self.hidden_norm(hidden)))),)


def _stacked(*linears: nn.Linear) -> nn.Linear:
    """One layer with the outputs of all of `linears`, which have the same input."""
    stacked = nn.Linear(linears[0].in_features, sum(linear.out_features for linear in linears))
    with torch.no_grad():
        stacked.weight.copy_(torch.cat([linear.weight for linear in linears]))
        stacked.bias.copy_(torch.cat([linear.bias for linear in linears]))
    return stacked.requires_grad_(False)


def _without_weight_norm(conv: nn.Conv1d) -> nn.Conv1d:
    """The same convolution with its weight as it is now; weight norm computes it in every call."""
    plain = nn.Conv1d(
        conv.in_channels, conv.out_channels, conv.kernel_size[0], padding=conv.padding[0], groups=conv.groups
    )
    plain.load_state_dict({"weight": conv.weight, "bias": conv.bias})
    return plain.requires_grad_(False)


class SpeechEncoder(nn.Module):
    """HuBERT, then a linear projection of the two tokens of a frame: 50 Hz to 25 Hz."""

    def __init__(self, config: SpeechConfig) -> None:
        from transformers import HubertConfig, HubertModel  # here, because the import takes seconds

        super().__init__()
        self.config = config
        self.hubert = HubertModel(HubertConfig(**config.hubert))
        if config.mel_bins:
            front = MelFrontEnd(config.mel_bins, self.hubert.config.conv_dim[-1])
            self.hubert.feature_extractor = front  # type: ignore[assignment]
        self.project = nn.Linear(FRAME_TOKENS * self.hubert.config.hidden_size, config.frame_features)

    @classmethod
    def of_checkpoint(cls, name: str | Path) -> SpeechEncoder:
        """A public HuBERT, by hub name (`facebook/hubert-base-ls960`, `facebook/hubert-large-ls960-ft`,
        `TencentGameMate/chinese-hubert-base`) or by its folder, as the encoder of these windows.

        The projection is the mean of a frame's two tokens. Raises OSError where there is no such model.
        """
        from transformers import HubertModel, Wav2Vec2FeatureExtractor

        hubert = HubertModel.from_pretrained(name)
        normalise = Wav2Vec2FeatureExtractor.from_pretrained(name).do_normalize
        width = hubert.config.hidden_size
        encoder = cls(
            SpeechConfig(hubert=hubert.config.to_diff_dict(), mel_bins=0, normalise=normalise, frame_features=width)
        )
        encoder.hubert = hubert
        with torch.no_grad():
            encoder.project.weight.copy_(torch.eye(width).repeat(1, FRAME_TOKENS) / FRAME_TOKENS)
            encoder.project.bias.zero_()
        return encoder.eval().requires_grad_(False)

    def tokens(self, windows: Tensor, masked: Tensor | None = None) -> Tensor:
        """windows [B, N] to the last layer's tokens, two to a frame: [B, F, 2 W]. `masked` [B, F] bool: frames whose
        sound is replaced by the mask token, for masked prediction."""
        pcm = windows if self.config.mel_bins else nn.functional.pad(windows, (LEAD_SAMPLES, 0))
        if self.config.normalise:
            pcm = (pcm - pcm.mean(-1, keepdim=True)) / (pcm.var(-1, keepdim=True, correction=0) + 1e-7).sqrt()
        mask = None if masked is None else masked.repeat_interleave(FRAME_TOKENS, 1)
        hidden: Tensor = self.hubert(pcm, mask_time_indices=mask).last_hidden_state
        return hidden.unflatten(1, (-1, FRAME_TOKENS)).flatten(2)

    def all_frames(self, windows: Tensor) -> Tensor:
        """windows [B, N] to the features of all their frames, [B, window_frames, D / 2]; training is on these."""
        features: Tensor = self.project(self.tokens(windows))
        return features

    def forward(self, windows: Tensor) -> Tensor:
        """windows [B, N] float32 in [-1, 1] at 16 kHz to the features of their new frames, [B, step, D].

        Lips move ahead of the sound, so a frame's features are joined with those of the last frame in its lookahead.
        """
        features = self.all_frames(windows)[:, -self._used_frames :]
        return torch.cat([features[:, : self.config.step_frames], features[:, self.config.lookahead_frames :]], -1)

    @property
    def _used_frames(self) -> int:
        """The frames at a window's end whose features `forward` returns."""
        return self.config.step_frames + self.config.lookahead_frames

    def for_cpu(self, int8: bool) -> SpeechEncoder:
        """A copy for `forward` alone, with `WindowLayer`s, of which the last one computes only the tokens of the new
        frames and of their lookahead. int8: multiply in int8 inside the layers (`engine.models.int8`)."""
        copied = copy.deepcopy(self).eval()
        hubert: Any = copied.hubert
        if hubert.config.do_stable_layer_norm:
            whole, used = (FRAME_TOKENS * frames for frames in (self.config.window_frames, self._used_frames))
            *first, last = hubert.encoder.layers
            hubert.encoder.layers = nn.ModuleList(
                [*(WindowLayer(layer, whole) for layer in first), WindowLayer(last, used)]
            )
        hubert.encoder.pos_conv_embed.conv = _without_weight_norm(hubert.encoder.pos_conv_embed.conv)
        if int8:
            quantise(hubert.encoder)
        return copied


@dataclass(frozen=True)
class SpeechState:
    """The samples that the next windows need: `pcm` [n] float32, of which the first `left` frames are context."""

    pcm: Samples


def init_state(config: SpeechConfig) -> SpeechState:
    """The state before the first sample: silence."""
    return SpeechState(np.zeros(config.left_frames * FRAME_SAMPLES, np.float32))


def cut(pcm: Samples, state: SpeechState, config: SpeechConfig) -> tuple[Samples, SpeechState]:
    """Continue the stream with pcm [n] float32: the windows [k, N] that are now complete (k may be 0) and the rest."""
    pcm = np.concatenate([state.pcm, pcm])
    advance = config.step_frames * FRAME_SAMPLES
    complete = max(0, (len(pcm) - config.window_samples) // advance + 1)
    if complete == 0:
        return np.empty((0, config.window_samples), np.float32), SpeechState(pcm)
    windows = np.lib.stride_tricks.sliding_window_view(pcm, config.window_samples)[: complete * advance : advance]
    return windows.copy(), SpeechState(pcm[complete * advance :].copy())


def windows_of(pcm: Samples, config: SpeechConfig) -> Samples:
    """The windows [k, N] of the stream from its start to the end of pcm [n] float32, and silence after it."""
    steps = -(-len(pcm) // (config.step_frames * FRAME_SAMPLES))
    tail = np.zeros(config.window_samples, np.float32)
    return cut(np.concatenate([pcm.astype(np.float32), tail]), init_state(config), config)[0][:steps]


@torch.inference_mode()
def extract(encoder: SpeechEncoder, pcm: Samples, *, batch_windows: int = 16) -> Tensor:
    """pcm [n] float32 at 16 kHz to [T, D], T = n / 640 rounded up: equal to the stream's features, in batches."""
    windows = torch.from_numpy(windows_of(pcm, encoder.config))
    if len(windows) == 0:
        return torch.empty(0, encoder.config.features)
    features = [encoder(batch).flatten(0, 1) for batch in windows.split(batch_windows)]
    return torch.cat(features)[: -(-len(pcm) // FRAME_SAMPLES)]
