"""How far a run is, and what it has seen of its data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

MAX_SKIPPED_RANGES = 1000
"""Ranges remembered as passed over, the newest; the run would have failed long before it needs more."""


@dataclass(slots=True)
class Progress:
    """How far a run is; goes into each checkpoint. `step`s are done; `position` is the next one in the order.

    `skipped` ranges of positions are passed over when the run comes by (again). `loss_before` and `held_out` are
    held-out losses, before the first step and the latest.
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
    loss_before: float | None = None
    held_out: float | None = None
    best: float | None = None
    evaluations_since_best: int = 0
    evaluated_at: int | None = None
    seconds: float = 0.0

    def next_position(self) -> int:
        """Behind what is skipped."""
        position = self.position
        for first, end in sorted(self.skipped):
            if first <= position < end:
                position = end
        return position

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
        """The inverse of `asdict`."""
        return cls(**{one.name: told[one.name] for one in fields(cls)})
