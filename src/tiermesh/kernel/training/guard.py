"""What stands between a gradient and the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from tiermesh.core.spikes import PATIENCE

if TYPE_CHECKING:
    from tiermesh.kernel.training.checkpoints import Snapshot

IN_MEMORY_BYTES = 512 * 1024 * 1024
"""States up to this size, an adapter's, are kept twice in memory to go back to; a whole model's is read from disk."""
INTERVAL_STEPS = 8
"""Steps between two such copies: what going back costs at most, and a copy costs some milliseconds."""


def gradient_norm(parameters: Iterable[nn.Parameter]) -> float:
    """Length of all gradients as one vector. A single NaN or Inf anywhere makes it NaN or Inf."""
    return float(get_total_norm([one.grad for one in parameters if one.grad is not None]))


def clip(parameters: Iterable[nn.Parameter], norm: float, limit: float | None) -> None:
    """Shorten the gradient, whose length is `norm`, to `limit`."""
    if limit is not None and norm > limit:
        clip_grads_with_norm_(list(parameters), limit, torch.tensor(norm))


def what_is_bad(weights: Iterable[torch.Tensor], loss: float) -> Literal["weights", "gradients", "loss"]:
    """Where NaN or Inf came from, when a gradient is not finite."""
    if not all(bool(torch.isfinite(one).all()) for one in weights):
        return "weights"
    return "gradients" if math.isfinite(loss) else "loss"


@dataclass(slots=True)
class LastGood:
    """States in memory to go back to. One counts as good when as many ordinary steps as make a spike followed it,
    because what an update has broken is seen at the next step."""

    good: Snapshot | None = None
    allowed: bool = True
    """Whether memory may be had for them."""
    _candidate: Snapshot | None = None
    _ordinary: int = 0

    @property
    def size_bytes(self) -> int:
        """Of all copies."""
        return sum(t.nbytes for one in (self.good, self._candidate) if one is not None for t in one.tensors.values())

    @property
    def latest(self) -> Snapshot | None:
        """Proven good or not."""
        return self._candidate or self.good

    def after_step(self) -> None:
        """The step was ordinary."""
        self._ordinary += 1
        if self._candidate is not None and self._ordinary >= PATIENCE:
            self.good, self._candidate = self._candidate, None

    def wanted(self, step: int) -> bool:
        """Whether to `offer` the state after this step."""
        if not self.allowed or self._candidate is not None:
            return False
        return self.good is None or step - self.good.step >= INTERVAL_STEPS

    def offer(self, snapshot: Snapshot) -> None:
        """A state whose steps until now were ordinary."""
        self._candidate, self._ordinary = snapshot, 0

    def forget(self) -> None:
        """As at the beginning."""
        self.good = self._candidate = None

    def doubted(self) -> None:
        """A step was not ordinary: what was not proven good by then is not kept."""
        self._candidate = None
