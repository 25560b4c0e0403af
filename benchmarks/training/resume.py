"""Runs that are killed at any moment and taken up by fresh processes, beside one that nobody disturbs.

A kill falls at a random instant between two steps that are chosen beforehand, so that all parts of a run are hit:
loading, steps, evaluations, saving.
"""

from __future__ import annotations

import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.training.workers import (
    losses,
    plan_run,
    run_to_end,
    steps_told,
    wait_for,
    weights_digest,
    worker,
)
from tiermesh.protocol.run_folder import DONE


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of all kills of one run."""

    kills: int
    steps: int
    steps_done_again: int
    equal_losses: bool
    equal_weights: bool

    @property
    def exact(self) -> bool:
        """To the last bit."""
        return self.equal_losses and self.equal_weights


def disturbed(folder: Path, model: Path, data: Path, *, kills: int, seed: int, threads: int, **fields: Any) -> Outcome:
    """Run it twice: once undisturbed, once with `kills` SIGKILLs."""
    calm = plan_run(folder / "calm", model, data, **fields)
    run_to_end(calm, threads=threads)
    hit = plan_run(folder / "hit", model, data, **fields)
    chance = random.Random(seed)
    steps = max(losses(calm))
    done = 0
    told = 0
    while done < kills:
        with worker(hit, threads=threads) as child:
            before = steps_told(hit)
            # Seldom before the first new step: most kills shall fall where something can be lost.
            goal = min(steps - 1, before + chance.choice((0, 1, 1, 2, 3)))
            ended = not wait_for(lambda goal=goal: steps_told(hit) >= goal, child)  # type: ignore[misc]
            time.sleep(chance.random() * 0.3)
            if not ended and child.poll() is None:
                child.send_signal(signal.SIGKILL)
                done += 1
            child.wait()
            told += 1
        if hit.result.exists() and child.returncode == DONE:
            break
    run_to_end(hit, threads=threads)
    expected, found = losses(calm), losses(hit)
    again = len([line for line in hit.events.read_bytes().splitlines() if b'"event":"step"' in line]) - len(found)
    return Outcome(
        kills=done,
        steps=steps,
        steps_done_again=again,
        equal_losses=expected == found,
        equal_weights=weights_digest(calm) == weights_digest(hit),
    )
