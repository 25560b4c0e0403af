"""Would the simulation notice? Core is broken on purpose, one rule at a time, and each break must be caught."""

from __future__ import annotations

import pytest
from tests.sim.mutations import CAUGHT_BY_DRILLS, CAUGHT_BY_SCENARIOS

from tiermesh.sim.drills import DRILLS
from tiermesh.sim.invariants import Violation
from tiermesh.sim.network import WIRED
from tiermesh.sim.scenario import Scenario

SCENARIOS = 40
"""Each mutation is caught within so many seeds."""
DRILL_SEEDS = 10


@pytest.mark.parametrize("name", CAUGHT_BY_SCENARIOS)
def test_an_invariant_catches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    CAUGHT_BY_SCENARIOS[name](monkeypatch)
    with pytest.raises(Violation):
        _run_scenarios()


@pytest.mark.parametrize("name", CAUGHT_BY_DRILLS)
def test_a_drill_takes_too_long_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutation, drill, bound_s = CAUGHT_BY_DRILLS[name]
    sound_s = [_duration(drill, seed) for seed in range(DRILL_SEEDS)]
    assert max(sound_s) < bound_s
    mutation(monkeypatch)
    assert any(_duration(drill, seed) > bound_s for seed in range(DRILL_SEEDS))


def _run_scenarios() -> None:
    for seed in range(SCENARIOS):
        Scenario(seed).run()


def _duration(drill: str, seed: int) -> float:
    try:
        return DRILLS[drill](seed, WIRED)
    except AssertionError:
        return float("inf")
