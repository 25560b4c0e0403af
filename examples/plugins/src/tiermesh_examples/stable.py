"""A schedule: called with the steps of the run, those of the warm-up, and the spec's options; gives `step -> factor`.

It must be a pure function of the step: a run that goes on from a checkpoint asks for the steps that are left.
"""

from __future__ import annotations

from collections.abc import Callable


def stable(steps: int, warmup_steps: int, *, decay: float = 0.2) -> Callable[[int], float]:
    """Warm-up, then the full rate, then a fall to nothing over the last `decay` of the run."""
    fall = max(1, round(decay * steps))

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        return min(1.0, max(0.0, (steps - step) / fall))

    return factor
