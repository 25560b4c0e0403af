"""The gradient of one step, added up over its micro-batches."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tiermesh.kernel.training import guard
from tiermesh.kernel.training.data.batches import PairBatch
from tiermesh.kernel.training.evaluation import moved

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tiermesh.kernel.training.data.batches import MicroBatch, Source
    from tiermesh.kernel.training.loss import Objective
    from tiermesh.kernel.training.models import Trainee


@dataclass(frozen=True, slots=True)
class Gradient:
    """What the micro-batches of a step amounted to; the gradient itself lies in the parameters."""

    loss: float
    norm: float
    tokens: int
    positions: int

    @property
    def finite(self) -> bool:
        """No NaN, no Inf, anywhere."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)


def added_up(
    trainee: Trainee,
    objective: Objective,
    source: Source[Any],
    rows: Sequence[int],
    micro_batch: int,
    *,
    epoch: int,
    stopping: Callable[[], bool],
) -> Gradient | None:
    """Put the gradient of the mean loss over the targets of `rows` into the parameters; None, and a part of it there,
    when the run is to stop."""
    targets = max(source.targets(rows), 1e-9)
    total, positions = torch.zeros(()), 0
    for start in range(0, len(rows), micro_batch):
        if stopping():
            return None
        batch = source.micro(rows[start : start + micro_batch], epoch=epoch)
        loss = objective.summed(trainee, moved(batch, trainee.device)) / targets
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach().cpu()
        positions += _positions(batch)
    norm = guard.gradient_norm(trainee.trainables.values())
    return Gradient(float(total), norm, source.tokens(rows), positions)


def seed_of(seed: int, position: int) -> int:
    """Of the random numbers of the step at this position."""
    digest = hashlib.blake2b(f"{seed} {position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def _positions(batch: MicroBatch | PairBatch) -> int:
    if isinstance(batch, PairBatch):
        return batch.chosen.tokens_BT.numel() + batch.rejected.tokens_BT.numel()
    return batch.tokens_BT.numel()
