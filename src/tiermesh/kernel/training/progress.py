"""How far a run is, and what it has seen of its data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tiermesh.protocol.training import TrainingSpec

LAST_SHARE = 5
"""The training loss at the end is a mean over the last fifth of the steps: of one step it is noise."""
MAX_LAST_STEPS = 50
"""Of them at most: more would be history."""

MAX_SKIPPED_RANGES = 1000
"""Ranges remembered as passed over, the newest; the run would have failed long before it needs more."""


def steps_of(spec: TrainingSpec, rows: int) -> int:
    """Of a whole run on so many rows."""
    wanted = math.ceil(spec.num_epochs * rows / spec.effective_batch)
    return wanted if spec.max_steps is None else min(wanted, spec.max_steps)


@dataclass(slots=True)
class Progress:
    """How far a run is; goes into each checkpoint. `step`s are done; `position` is the next one in the order.

    `skipped` ranges of positions are passed over when the run comes by (again). `loss_before` and `held_out` are
    held-out losses, before the first step and the latest; `first_loss` is that of the first step, `losses` are those of
    the newest, `canary` is what was answered before the first one, by prompt. `gpu_used` sums up the `gpu_looks` at how
    busy the GPU was.
    """

    step: int = 0
    position: int = 0
    tokens: int = 0
    skipped: list[list[int]] = field(default_factory=list)
    suspect_from: int | None = None
    bad_in_a_row: int = 0
    skipped_steps: int = 0
    rollbacks: int = 0
    loss: float | None = None
    first_loss: float | None = None
    losses: list[float] = field(default_factory=list)
    canary: dict[str, str] = field(default_factory=dict)
    loss_before: float | None = None
    held_out: float | None = None
    best: float | None = None
    evaluations_since_best: int = 0
    evaluated_at: int | None = None
    seconds: float = 0.0
    gpu_used: float = 0.0
    gpu_looks: int = 0

    def next_position(self) -> int:
        """Behind what is skipped."""
        position = self.position
        for first, end in sorted(self.skipped):
            if first <= position < end:
                position = end
        return position

    @property
    def train_loss(self) -> float | None:
        """The mean loss of the last steps; None: none went well."""
        last = self.losses[-min(MAX_LAST_STEPS, max(1, self.step // LAST_SHARE)) :]
        return sum(last) / len(last) if last else None

    @property
    def gpu_use(self) -> float | None:
        """The mean share of the time in which the GPU computed; None: nobody could tell."""
        return self.gpu_used / self.gpu_looks if self.gpu_looks else None

    def looked_at_gpu(self, use: float | None) -> None:
        """How busy it was; None: unknown."""
        if use is not None:
            self.gpu_used, self.gpu_looks = self.gpu_used + use, self.gpu_looks + 1

    def learned(self, loss: float, seconds: float) -> None:
        """A step went well."""
        self.first_loss = loss if self.first_loss is None else self.first_loss
        self.loss, self.losses = loss, [*self.losses, loss][-MAX_LAST_STEPS:]
        self.seconds += seconds
        self.bad_in_a_row, self.suspect_from = 0, None

    def skip(self, first: int, end: int) -> None:
        """Never show these positions again."""
        self.skipped = [*self.skipped, [first, end]][-MAX_SKIPPED_RANGES:]

    def evaluated(self, loss: float, least: float) -> None:
        """A held-out loss, as of now; one that is lower by more than `least` is a new best."""
        self.held_out = loss
        if self.step == 0:
            self.loss_before = loss
        if self.best is None or loss < self.best - least:
            self.best, self.evaluations_since_best = loss, 0
        else:
            self.evaluations_since_best += 1

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Progress:
        """The inverse of `asdict`; what an earlier version did not keep has its default."""
        return cls(**{one.name: told[one.name] for one in fields(cls) if one.name in told})
