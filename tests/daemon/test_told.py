"""From a worker's end to what the coordinator hears of it."""

from __future__ import annotations

import pytest

from tiermesh.adapters.trainer import Ending
from tiermesh.core.attempts import PREPARING, Told
from tiermesh.daemon.told import after_end
from tiermesh.protocol.training_events import Failed

BEFORE = Told(seq=1, phase="train", step=7)
FULL = Failed(kind="disk_full", message="no space is left", advice="free some space", step=7)
BAD = Failed(kind="bad_data", message="12 records are bad", advice="mend the lines", step=7)

ENDS = [
    (Ending("failed", "12 records are bad", BAD), "failed", "bad_data", "train", "12 records are bad. mend the lines"),
    (Ending("failed", "no space is left", FULL), "stopped", None, PREPARING, "no space is left"),
    (Ending("killed", "somebody killed it"), "stopped", None, "train", "somebody killed it"),
    (Ending("out_of_memory", "killed for memory"), "failed", "out_of_memory", "train", "killed for memory"),
    (Ending("crashed", "signal 11"), "failed", "unexplained", "train", "signal 11"),
]


@pytest.mark.parametrize(("ending", "state", "failure", "phase", "reason"), ENDS)
def test_whose_fault_an_end_was(ending: Ending, state: str, failure: str | None, phase: str, reason: str) -> None:
    told = after_end(BEFORE, ending)
    assert (told.state, told.failure, told.phase, told.reason, told.step) == (state, failure, phase, reason, 7)
    assert told.seq > BEFORE.seq
