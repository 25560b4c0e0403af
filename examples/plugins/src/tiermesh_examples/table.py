"""A callback: called with the spec's options; gives a function that is called with each event of the run.

The events are those of `tiermesh.protocol.training_events`. It runs between steps, so it must not take long; one that
raises is not called any more, and the run goes on.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

from tiermesh.protocol.training_events import StepDone, TrainingEvent


def table(*, path: str) -> Callable[[TrainingEvent], None]:
    """Append each step's figures to a CSV file; a run that goes on adds to what is there."""
    file = Path(path)

    def write(event: TrainingEvent) -> None:
        if not isinstance(event, StepDone):
            return
        new = not file.exists()
        with file.open("a", newline="") as rows:
            writer = csv.writer(rows)
            if new:
                writer.writerow(("step", "loss", "learning_rate", "tokens_per_s"))
            writer.writerow((event.step, event.loss, event.learning_rate, event.tokens_per_s))

    return write
