"""Speech features and a speaking style to the lower face, frame by frame (§3.1).

Attention looks back over a bounded window and never ahead; the only lookahead is that of the features. Positions, which
the paper leaves open, are relative, so that a stream may last for days.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine.models.morphable import VERTICES, MorphableModel


@dataclass(frozen=True, kw_only=True)
class GeometryConfig:
    """Shape of the network; `features` is the width of the speech features it was trained on."""

    features: int = 256
    width: int = 128
    hidden: int = 256
    heads: int = 4
    layers: int = 2
    window_frames: int = 20  # how far attention looks back: 0.8 s, longer than a syllable
    lower_vertices: int = 166
    components: int = 50
    dropout: float = 0.3


@dataclass(frozen=True)
class GeometryState:
    """Keys and values of the last frames, [B, 1 + layers, window - 1, C] each: style attention, then the layers."""

    keys: Tensor
    values: Tensor


class WindowAttention(nn.Module):
    """Attention of frame t on the frames t - window + 1 ... t, with a learned bias for each head and distance.

    Before the stream's start keys and values are zero.
    """

    def __init__(self, width: int, heads: int, window: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.window, self.dropout = heads, window, dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        # Local alignment: before training every head prefers the current frame, each with a different reach.
        slope = 2.0 ** -torch.arange(heads).float()[:, None]
        self.bias = nn.Parameter(-slope * torch.arange(window).float())

    def _band(self, frames: int) -> Tensor:
        """Bias [heads, T, window - 1 + T] of query i for key j, minus infinity outside the window."""
        at = torch.arange(self.window - 1 + frames, device=self.bias.device)
        distance = at[self.window - 1 :, None] - at
        inside = (distance >= 0) & (distance < self.window)
        return self.bias[:, distance.clamp(0, self.window - 1)].masked_fill(~inside, float("-inf"))

    def _split(self, x: Tensor) -> Tensor:
        """[B, T, C] to [B, heads, T, C / heads]."""
        return x.reshape(*x.shape[:-1], self.heads, -1).transpose(1, 2)

    def step(self, q: Tensor, kv: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, kv [B, T, C] and the past's keys and values [B, window - 1, C]: output [B, T, C] and the new past."""
        keys = torch.cat([keys, self.key(kv)], 1)
        values = torch.cat([values, self.value(kv)], 1)
        dropout = self.dropout if self.training else 0.0
        mixed = nn.functional.scaled_dot_product_attention(
            self._split(self.query(q)), self._split(keys), self._split(values), self._band(q.shape[1]), dropout
        )
        kept = keys.shape[1] - (self.window - 1)
        return self.out(mixed.transpose(1, 2).flatten(2)), keys[:, kept:], values[:, kept:]


class TemplateAttention(nn.Module):
    """Cross-attention of every frame. Keys: the template, and a learned key of value zero, so that speech can weight
    the template; the softmax over the template alone would always be 1."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.nothing = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, template: Tensor) -> Tensor:
        """x [B, T, C] on template [B, C]."""
        q = self.query(x).unflatten(-1, (self.heads, -1))
        difference = (self.key(template) - self.nothing).unflatten(-1, (self.heads, -1))[:, None]
        share = torch.sigmoid((q * difference).sum(-1, keepdim=True) * q.shape[-1] ** -0.5)
        value = self.value(template).unflatten(-1, (self.heads, -1))[:, None]
        mixed: Tensor = self.out((share * value).flatten(2))
        return mixed


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.contract(self.dropout(nn.functional.gelu(self.expand(self.norm(x)))))
        return x + changed


class Layer(nn.Module):
    """Pre-norm windowed self-attention and feed-forward."""

    def __init__(self, config: GeometryConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.attention = WindowAttention(config.width, config.heads, config.window_frames, config.dropout)
        self.hidden = FeedForward(config.width, config.hidden, config.dropout)

    def step(self, x: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T, C] with the past as in `WindowAttention.step`: output of the same shape and the new past."""
        normed = self.norm(x)
        mixed, keys, values = self.attention.step(normed, normed, keys, values)
        return self.hidden(x + mixed), keys, values


class GeometryGenerator(nn.Module):
    """Stage one of the paper: style encoder, style-aware audio encoding, lip-synced geometry."""

    mean: Tensor
    lower: Tensor

    def __init__(self, config: GeometryConfig) -> None:
        super().__init__()
        self.config = config
        width, heads, window = config.width, config.heads, config.window_frames
        self.register_buffer("mean", torch.zeros(VERTICES, 3))
        self.register_buffer("lower", torch.zeros(config.lower_vertices, dtype=torch.int64))
        self.encode = nn.Sequential(  # E_vtx
            nn.Linear(3 * VERTICES, 2 * config.components),
            nn.GELU(),
            nn.Linear(2 * config.components, width),
        )
        self.to_style = nn.Linear(2 * width, width)
        self.audio = nn.Linear(config.features, width)
        self.audio_norm = nn.LayerNorm(width)
        self.style_attention = WindowAttention(width, heads, window, config.dropout)
        self.style_hidden = FeedForward(width, config.hidden, config.dropout)
        self.template_norm = nn.LayerNorm(width)
        self.template_attention = TemplateAttention(width, heads)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.coefficients = nn.Linear(width, config.components)  # D_vtx, with the basis below
        self.amplitude = nn.Linear(width, config.components)  # scale of the expressions, from the style
        nn.init.zeros_(self.amplitude.weight)
        nn.init.zeros_(self.amplitude.bias)
        self.basis = nn.Linear(config.components, 3 * config.lower_vertices, bias=False)

    @torch.no_grad()
    def start_from(self, model: MorphableModel) -> None:
        """Take mean and index from the face model; E_vtx starts as its coefficients, D_vtx as its expression basis."""
        self.mean.copy_(model.mean)
        self.lower.copy_(model.lower.nonzero().flatten())
        bases = torch.cat([model.expression_basis, model.shape_basis]).flatten(1)
        first = self.encode[0]
        assert isinstance(first, nn.Linear)
        ridge = 1e-2 * torch.eye(len(bases))
        first.weight.copy_(torch.linalg.solve(bases @ bases.T + ridge, bases))
        first.bias.zero_()
        self.basis.weight.copy_(model.expression_basis[:, self.lower].flatten(1).T)

    def style(self, expression_vertices: Tensor) -> Tensor:
        """Style S [B, D] from expression-only vertices mean + B_expr beta, [B, T, V, 3]."""
        encoded = self.encode((expression_vertices - self.mean).flatten(2))
        deviation, mean = torch.std_mean(encoded, 1, correction=0)
        style: Tensor = self.to_style(torch.cat([mean, deviation], -1))
        return style

    def init_state(self, sessions: int) -> GeometryState:
        """The state of `sessions` before the first frame."""
        config = self.config
        shape = (sessions, 1 + config.layers, config.window_frames - 1, config.width)
        empty = self.mean.new_zeros(shape)
        return GeometryState(empty, empty)

    def step(
        self, features: Tensor, style: Tensor, template: Tensor, state: GeometryState
    ) -> tuple[Tensor, GeometryState]:
        """Continue the stream with features [B, T, D], T >= 1, of speakers with style [B, D] and template [B, V, 3].

        Returns the lower vertices [B, T, V_low, 3] in model units and the next state.
        """
        speech = self.audio_norm(self.audio(features))
        past = []  # keys and values of each attention
        # The query is the style; its place in time is the relative bias. Residual on the audio and on the query.
        query = style[:, None].expand_as(speech)
        mixed, *kept = self.style_attention.step(query, speech + query, state.keys[:, 0], state.values[:, 0])
        past.append(kept)
        x = self.style_hidden(speech + query + mixed)
        x = x + self.template_attention(self.template_norm(x), self.encode((template - self.mean).flatten(1)))
        for i, layer in enumerate(self.layers, 1):
            assert isinstance(layer, Layer)
            x, *kept = layer.step(x, state.keys[:, i], state.values[:, i])
            past.append(kept)
        # A multiplication, since attention and residuals add: without it the style hardly changes how wide mouths open.
        # Clamped: a hostile file's style could overflow; real speakers stay far below e^3.
        coefficients = self.coefficients(self.norm(x)) * self.amplitude(style).clamp(-3, 3).exp()[:, None]
        offsets = self.basis(coefficients).unflatten(-1, (-1, 3))
        keys, values = (torch.stack(parts, 1) for parts in zip(*past, strict=True))
        return template[:, None, self.lower] + offsets, GeometryState(keys, values)

    def forward(self, features: Tensor, style: Tensor, template: Tensor) -> Tensor:
        """The stream from its start in one step: features [B, T, D] to lower vertices [B, T, V_low, 3]."""
        return self.step(features, style, template, self.init_state(len(features)))[0]
