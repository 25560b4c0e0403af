"""Would the simulation notice? The leading of jobs is broken on purpose, one rule at a time."""

from __future__ import annotations

import pytest
from tests.sim.job_mutations import CAUGHT

from tiermesh.sim.invariants import Violation
from tiermesh.sim.jobs_scenario import JobScenario

SEEDS = 300
"""Each mutation is caught within so many; most within one."""


@pytest.mark.parametrize("name", CAUGHT)
def test_it_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    CAUGHT[name](monkeypatch)
    with pytest.raises(Violation):
        _run_scenarios()


def _run_scenarios() -> None:
    for seed in range(SEEDS):
        JobScenario(seed).run()
