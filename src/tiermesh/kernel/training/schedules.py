"""How the learning rate goes over a run: pure functions of the step, so that nothing of them needs to be saved."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]
"""From a step, counted from 0, to what the learning rate is multiplied by."""


def constant(steps: int, warmup_steps: int) -> Schedule:
    """The full rate after the warm-up."""
    return _warmed_up(warmup_steps, lambda _: 1.0)


def linear(steps: int, warmup_steps: int, *, floor: float = 0.0) -> Schedule:
    """Falls evenly to `floor`, which the step after the last would have."""
    return _warmed_up(warmup_steps, lambda step: floor + (1.0 - floor) * (1.0 - _share(step, steps, warmup_steps)))


def cosine(steps: int, warmup_steps: int, *, floor: float = 0.0) -> Schedule:
    """Falls like half a cosine to `floor` (Loshchilov and Hutter 2017, arXiv 1608.03983)."""

    def factor(step: int) -> float:
        return floor + (1.0 - floor) * (1.0 + math.cos(math.pi * _share(step, steps, warmup_steps))) / 2.0

    return _warmed_up(warmup_steps, factor)


def _warmed_up(warmup_steps: int, after: Schedule) -> Schedule:
    """Rises evenly; the first step already moves, and the first one after the warm-up has the full rate."""
    return lambda step: (step + 1) / (warmup_steps + 1) if step < warmup_steps else after(step)


def _share(step: int, steps: int, warmup_steps: int) -> float:
    return min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
