"""Networks of two rival classes of talking-face renderers, to measure their speed.

They are written from the public descriptions of those classes: block structure, tensor sizes and amount of arithmetic
agree. Their weights are random, their pictures mean nothing.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

FACE_PX = 256
MEL_BINS, MEL_FRAMES = 80, 16
LATENT_PX, LATENT_CHANNELS = 32, 4
AUDIO_TOKENS, AUDIO_WIDTH = 50, 384  # features of a small Whisper encoder around one picture


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU())


class _Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.inner(x) + x)


class ConvolutionalLips(nn.Module):
    """The class of Wav2Lip (Prajwal et al. 2020) at 256 px: a convolutional encoder of the masked and a reference face,
    another one of 0.2 s of mel spectrogram, and a decoder with skip connections. `width`: channels at full size, 16."""

    def __init__(self, width: int = 16):
        super().__init__()
        channels = [width * m for m in (1, 2, 4, 8, 16, 32, 32)]
        self.first = nn.Sequential(nn.Conv2d(6, width, 7, 1, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.down = nn.ModuleList(
            nn.Sequential(_conv(a, b, 2), _Residual(b), _Residual(b)) for a, b in pairwise(channels)
        )
        deepest = channels[-1]
        self.sound = nn.Sequential(
            _conv(1, 2 * width), _Residual(2 * width),
            _conv(2 * width, 4 * width, 2), _Residual(4 * width),
            _conv(4 * width, 16 * width, 2), _Residual(16 * width),
            _conv(16 * width, deepest, 2), nn.AdaptiveAvgPool2d(1),
        )  # fmt: skip
        self.up = nn.ModuleList()
        before = 2 * deepest
        for skip in reversed(channels[:-1]):
            after = 2 * skip
            up = nn.ConvTranspose2d(before, after, 3, 2, 1, output_padding=1)
            self.up.append(nn.Sequential(up, nn.BatchNorm2d(after), nn.ReLU(), _Residual(after), _Residual(after)))
            before = after + skip
        self.last = nn.Sequential(_conv(before, 2 * width), nn.Conv2d(2 * width, 3, 1), nn.Sigmoid())

    def forward(self, faces: Tensor, mel: Tensor) -> tuple[Tensor]:
        """faces [B, 6, 256, 256], mel [B, 1, 80, 16] to pictures [B, 3, 256, 256]."""
        kept = [self.first(faces)]
        for block in self.down:
            kept.append(block(kept[-1]))
        x = kept.pop()
        x = torch.cat([x, self.sound(mel).expand(-1, -1, *x.shape[2:])], 1)
        for block in self.up:
            x = torch.cat([block(x), kept.pop()], 1)
        return (self.last(x),)

    @staticmethod
    def example(batch: int) -> tuple[Tensor, ...]:
        return torch.rand(batch, 6, FACE_PX, FACE_PX), torch.rand(batch, 1, MEL_BINS, MEL_FRAMES)


class _Attention(nn.Module):
    def __init__(self, channels: int, context: int, heads: int = 8):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(channels, channels, bias=False)
        self.key_value = nn.Linear(context, 2 * channels, bias=False)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x [B, P, C] on context [B, S, C']."""
        query = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.key_value(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(2))


class _Transformer(nn.Module):
    """Self-attention over the places, cross-attention on the sound, gated feed-forward."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(32, channels)
        self.into, self.out = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.places, self.sound = _Attention(channels, channels), _Attention(channels, AUDIO_WIDTH)
        self.expand, self.contract = nn.Linear(channels, 8 * channels), nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor, sound: Tensor) -> Tensor:
        tokens = self.into(self.norm(x)).flatten(2).transpose(1, 2)
        normed = self.norms[0](tokens)
        tokens = tokens + self.places(normed, normed)
        tokens = tokens + self.sound(self.norms[1](tokens), sound)
        value, gate = self.expand(self.norms[2](tokens)).chunk(2, -1)
        tokens = tokens + self.contract(value * functional.gelu(gate))
        return x + self.out(tokens.transpose(1, 2).unflatten(2, x.shape[2:]))


class _Block(nn.Module):
    """Two normed convolutions with a residual, shifted by `time` where there is one."""

    def __init__(self, inputs: int, outputs: int, time: int = 0):
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(32, inputs), nn.GroupNorm(32, outputs)])
        self.convs = nn.ModuleList([nn.Conv2d(inputs, outputs, 3, 1, 1), nn.Conv2d(outputs, outputs, 3, 1, 1)])
        self.time = nn.Linear(time, outputs) if time else None
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        inner = self.convs[0](functional.silu(self.norms[0](x)))
        if self.time is not None:
            inner = inner + self.time(time)[..., None, None]
        return self.skip(x) + self.convs[1](functional.silu(self.norms[1](inner)))


class LatentUNet(nn.Module):
    """The class of MuseTalk (Zhang et al. 2024) and other one-step latent painters: the UNet of Stable Diffusion 1 on
    32 x 32 latents, masked and reference side by side, with sound as context. `width`: 320 at full size."""

    def __init__(self, width: int = 320):
        super().__init__()
        levels = [width * m for m in (1, 2, 4, 4)]
        time = 4 * width
        self.time = nn.Parameter(torch.zeros(time))  # one step only: its embedding is a constant
        self.first = nn.Conv2d(2 * LATENT_CHANNELS, width, 3, 1, 1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        kept, before = [width], width
        for i, channels in enumerate(levels):
            for _ in range(2):
                self.down.append(_Stage(before, channels, time, attends=i < 3))
                kept.append(before := channels)
            if i < 3:
                self.down.append(nn.Conv2d(channels, channels, 3, 2, 1))
                kept.append(channels)
        self.middle = nn.ModuleList([_Stage(before, before, time, attends=True), _Block(before, before, time)])
        for i, channels in reversed(list(enumerate(levels))):
            for _ in range(3):
                self.up.append(_Stage(before + kept.pop(), channels, time, attends=i < 3))
                before = channels
            if i > 0:
                self.up.append(_Larger(channels))
        self.last = nn.Sequential(nn.GroupNorm(32, before), nn.SiLU(), nn.Conv2d(before, LATENT_CHANNELS, 3, 1, 1))

    def forward(self, latents: Tensor, sound: Tensor) -> tuple[Tensor]:
        """latents [B, 8, 32, 32], sound [B, 50, 384] to latents [B, 4, 32, 32]."""
        x = self.first(latents)
        kept = [x]
        for part in self.down:
            x = part(x, self.time, sound) if isinstance(part, _Stage) else part(x)
            kept.append(x)
        x = self.middle[1](self.middle[0](x, self.time, sound), self.time)
        for part in self.up:
            x = part(torch.cat([x, kept.pop()], 1), self.time, sound) if isinstance(part, _Stage) else part(x)
        return (self.last(x),)

    @staticmethod
    def example(batch: int) -> tuple[Tensor, ...]:
        latents = torch.randn(batch, 2 * LATENT_CHANNELS, LATENT_PX, LATENT_PX)
        return latents, torch.randn(batch, AUDIO_TOKENS, AUDIO_WIDTH)


class _Stage(nn.Module):
    def __init__(self, inputs: int, outputs: int, time: int, *, attends: bool):
        super().__init__()
        self.block = _Block(inputs, outputs, time)
        self.transformer = _Transformer(outputs) if attends else None

    def forward(self, x: Tensor, time: Tensor, sound: Tensor) -> Tensor:
        x = self.block(x, time)
        return x if self.transformer is None else self.transformer(x, sound)


class _Larger(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.interpolate(x, scale_factor=2.0))


class LatentDecoder(nn.Module):
    """The part of a latent painter after its UNet: the decoder of Stable Diffusion's autoencoder, 32 x 32 latents to
    256 x 256 pixels. `width`: 128 at full size."""

    def __init__(self, width: int = 128):
        super().__init__()
        levels = [width * m for m in (4, 4, 2, 1)]
        before = levels[0]
        self.first = nn.Conv2d(LATENT_CHANNELS, before, 3, 1, 1)
        self.middle = nn.ModuleList([_Block(before, before), _Block(before, before)])
        self.norm, self.places = nn.GroupNorm(32, before), _Attention(before, before, heads=1)
        parts: list[nn.Module] = []
        for i, channels in enumerate(levels):
            for _ in range(3):
                parts.append(_Block(before, channels))
                before = channels
            if i < 3:
                parts.append(_Larger(channels))
        self.up = nn.Sequential(*parts)
        self.last = nn.Sequential(nn.GroupNorm(32, before), nn.SiLU(), nn.Conv2d(before, 3, 3, 1, 1))

    def forward(self, latents: Tensor) -> tuple[Tensor]:
        """latents [B, 4, 32, 32] to pictures [B, 3, 256, 256]."""
        x = self.middle[0](self.first(latents))
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        x = x + self.places(tokens, tokens).transpose(1, 2).unflatten(2, x.shape[2:])
        return (self.last(self.up(self.middle[1](x))),)

    @staticmethod
    def example(batch: int) -> tuple[Tensor, ...]:
        return (torch.randn(batch, LATENT_CHANNELS, LATENT_PX, LATENT_PX),)
