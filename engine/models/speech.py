"""PCM to speech features at 25 Hz, live and offline through the same windows (§3.1, style-aware audio encoding).

The encoder sees windows that lie on the absolute frame grid: `left` frames of context, `step` new frames and
`lookahead` frames, 640 samples each. Only the features of the new frames leave it. Before the stream's first sample
and after its last one there is silence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from engine.config import WindowConfig

Samples = npt.NDArray[np.float32]

RATE_HZ = 16_000
FRAME_SAMPLES = 640  # 40 ms at 16 kHz
HOP_SAMPLES = 160
FFT_SAMPLES = 512
STFT_WINDOW_SAMPLES = 400


@dataclass(frozen=True, kw_only=True)
class SpeechConfig:
    """Shape of the network and the windows that its weights were trained under."""

    left_frames: int = WindowConfig.left_frames
    step_frames: int = WindowConfig.step_frames
    lookahead_frames: int = WindowConfig.lookahead_frames
    mel_bins: int = 80
    width: int = 256
    hidden: int = 768
    heads: int = 4
    layers: int = 5
    frame_features: int = 128

    @property
    def features(self) -> int:
        """D: a frame's own features and those of the frame `lookahead_frames` later."""
        return 2 * self.frame_features

    @property
    def window_frames(self) -> int:
        return self.left_frames + self.step_frames + self.lookahead_frames

    @property
    def window_samples(self) -> int:
        return self.window_frames * FRAME_SAMPLES

    @property
    def algorithmic_latency_ms(self) -> int:
        """Speech that must have arrived before the first frame of a step can be made."""
        return (self.step_frames + self.lookahead_frames) * 40


def mel_filters(bins: int) -> Tensor:
    """Triangular filters [FFT_SAMPLES / 2 + 1, bins] on the mel scale (O'Shaughnessy 1987), 0-8 kHz, of unit sum."""
    edges_mel = torch.linspace(0, 2595 * math.log10(1 + RATE_HZ / 2 / 700), bins + 2)
    edges_hz = 700 * (10 ** (edges_mel / 2595) - 1)
    frequency = torch.linspace(0, RATE_HZ / 2, FFT_SAMPLES // 2 + 1)[:, None]
    low, middle, high = edges_hz[:-2], edges_hz[1:-1], edges_hz[2:]
    triangles = torch.minimum((frequency - low) / (middle - low), (high - frequency) / (high - middle)).clamp_min(0)
    return triangles / triangles.sum(0).clamp_min(1e-3)


class TransformerLayer(nn.Module):
    """Pre-norm self-attention and feed-forward on x [B, T, C]."""

    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_hidden = nn.LayerNorm(width)
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        changed: Tensor = self.contract(nn.functional.gelu(self.expand(self.norm_hidden(x))))
        return x + changed


class SpeechEncoder(nn.Module):
    """Log-mel, two strided convolutions to 25 Hz, transformer encoder."""

    mel: Tensor
    taper: Tensor

    def __init__(self, config: SpeechConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mel", mel_filters(config.mel_bins), persistent=False)
        self.register_buffer("taper", torch.hann_window(STFT_WINDOW_SAMPLES), persistent=False)
        self.conv1 = nn.Conv1d(config.mel_bins, config.width, 3, stride=2, padding=1)
        self.conv2 = nn.Conv1d(config.width, config.width, 3, stride=2, padding=1)
        self.position = nn.Parameter(0.02 * torch.randn(config.window_frames, config.width))
        self.layers = nn.ModuleList(
            TransformerLayer(config.width, config.hidden, config.heads) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.project = nn.Linear(config.width, config.frame_features)

    def log_mel(self, windows: Tensor) -> Tensor:
        """windows [B, N] in [-1, 1] to [B, mel_bins, N / 160]; about -2 (silence) to 2 (full scale)."""
        windows = nn.functional.pad(windows, (STFT_WINDOW_SAMPLES - HOP_SAMPLES, 0))
        frames = windows.unfold(-1, STFT_WINDOW_SAMPLES, HOP_SAMPLES) * self.taper
        power = torch.fft.rfft(frames, n=FFT_SAMPLES).abs().square() @ self.mel
        decades: Tensor = power.clamp_min(1e-5).log10()
        return (decades + 1).transpose(1, 2) / 2

    def all_frames(self, windows: Tensor) -> Tensor:
        """windows [B, N] to the features of every frame of theirs, [B, window_frames, D / 2]: what training teaches."""
        x = nn.functional.gelu(self.conv1(self.log_mel(windows)))
        x = nn.functional.gelu(self.conv2(x)).transpose(1, 2) + self.position
        for layer in self.layers:
            x = layer(x)
        features: Tensor = self.project(self.norm(x))
        return features

    def forward(self, windows: Tensor) -> Tensor:
        """windows [B, N] float32 in [-1, 1] at 16 kHz to the features of their new frames, [B, step, D].

        Lips move ahead of the sound, so a frame's features are joined with those of the last frame that it may hear.
        """
        features = self.all_frames(windows)
        now, step = self.config.left_frames, self.config.step_frames
        ahead = now + self.config.lookahead_frames
        return torch.cat([features[:, now : now + step], features[:, ahead : ahead + step]], -1)


@dataclass(frozen=True)
class SpeechState:
    """What the next windows need of the past: `pcm` [n] float32, of which the first `left` frames are context."""

    pcm: Samples


def init_state(config: SpeechConfig) -> SpeechState:
    """A stream that has been silent so far."""
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


@torch.inference_mode()
def extract(encoder: SpeechEncoder, pcm: Samples, *, batch_windows: int = 16) -> Tensor:
    """pcm [n] float32 at 16 kHz to [T, D], T = n / 640 rounded up: what a stream of it gives, in batches."""
    config = encoder.config
    total = -(-len(pcm) // FRAME_SAMPLES)
    tail = np.zeros(config.window_samples, np.float32)
    windows, _ = cut(np.concatenate([pcm.astype(np.float32), tail]), init_state(config), config)
    windows = windows[: -(-total // config.step_frames)]
    if len(windows) == 0:
        return torch.empty(0, config.features)
    features = [encoder(batch).flatten(0, 1) for batch in torch.split(torch.from_numpy(windows), batch_windows)]
    return torch.cat(features)[:total]
