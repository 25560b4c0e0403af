"""A kill for memory, a kill by somebody and a crash are told apart."""

from __future__ import annotations

import pytest

from tiermesh.core.worker_death import Ending, Evidence, ending_of
from tiermesh.protocol.run_folder import DONE, FAILED, STOPPED

KILL, ABORT, FAULT = -9, -6, -11


@pytest.mark.parametrize(
    ("evidence", "ending"),
    [
        (Evidence(returncode=DONE), "done"),
        (Evidence(returncode=FAILED, memory_share=0.99), "failed"),
        (Evidence(returncode=STOPPED, memory_share=0.99), "stopped"),
        (Evidence(returncode=KILL), "killed"),
        (Evidence(returncode=KILL, memory_share=0.5, system_kills=0), "killed"),
        (Evidence(returncode=KILL, memory_share=0.5, system_kills=1), "out_of_memory"),
        (Evidence(returncode=KILL, memory_share=0.95, system_kills=0), "out_of_memory"),
        (Evidence(returncode=128 + 9, system_kills=2), "out_of_memory"),
        (Evidence(returncode=ABORT, memory_share=0.95), "out_of_memory"),
        (Evidence(returncode=ABORT, memory_share=0.4), "crashed"),
        (Evidence(returncode=ABORT, memory_share=0.4, system_kills=1), "crashed"),
        (Evidence(returncode=FAULT), "crashed"),
        (Evidence(returncode=1), "crashed"),
        (Evidence(returncode=1, memory_share=0.97), "out_of_memory"),
    ],
    ids=str,
)
def test_how_it_ended(evidence: Evidence, ending: Ending) -> None:
    assert ending_of(evidence) == ending
