"""One optimisation of a network: learning rate, moving average of the weights, checkpoint and resume."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import nn

log = logging.getLogger(__name__)

Module = TypeVar("Module", bound=nn.Module)


class Optimisation(Generic[Module]):
    """Optimises `module` with AdamW; it can be stopped at any time and resumes from its checkpoint.

        for step in optimisation.steps():
            optimisation.update(loss)

    The checkpoint is written every `save_every_s` seconds and at the end. `average`, the exponential moving average of
    the weights, is the result.
    """

    def __init__(
        self,
        module: Module,
        checkpoint: Path,
        *,
        steps: int,
        learning_rate: float,
        warmup_steps: int = 100,
        weight_decay: float = 0.01,
        average_decay: float = 0.998,
        save_every_s: float = 120.0,
    ) -> None:
        self.module = module
        self.average = copy.deepcopy(module).requires_grad_(False)
        self.step = 0
        self._checkpoint, self._total = checkpoint, steps
        self._learning_rate, self._warmup_steps = learning_rate, warmup_steps
        self._decay, self._save_every_s = average_decay, save_every_s
        self._optimiser = torch.optim.AdamW(module.parameters(), lr=learning_rate, weight_decay=weight_decay)
        if checkpoint.exists():
            stored = torch.load(checkpoint, weights_only=True)
            module.load_state_dict(stored["module"])
            self.average.load_state_dict(stored["average"])
            self._optimiser.load_state_dict(stored["optimiser"])
            self.step = stored["step"]

    def steps(self) -> Iterator[int]:
        """The remaining steps. In each, the caller computes a loss and passes it to `update`."""
        saved_at = time.monotonic()
        self.module.train()
        while self.step < self._total:
            yield self.step
            self.step += 1
            if time.monotonic() - saved_at > self._save_every_s:
                self.save()
                saved_at = time.monotonic()
        self.save()

    def update(self, loss: torch.Tensor) -> None:
        """One step. The rate warms up linearly and falls as a cosine to 2 %; gradients are clipped to norm 1."""
        warm = min(1.0, (self.step + 1) / self._warmup_steps)
        cosine = 0.51 + 0.49 * math.cos(math.pi * min(1.0, self.step / self._total))
        for group in self._optimiser.param_groups:
            group["lr"] = self._learning_rate * warm * cosine
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self._optimiser.step()
        decay = min(self._decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.module.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)

    def save(self) -> None:
        """Write the checkpoint under a temporary name, then rename it."""
        self._checkpoint.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._checkpoint.with_suffix(".tmp")
        parts = {
            "module": self.module.state_dict(),
            "average": self.average.state_dict(),
        }
        torch.save(
            {**parts, "optimiser": self._optimiser.state_dict(), "step": self.step},
            temporary,
        )
        temporary.rename(self._checkpoint)
