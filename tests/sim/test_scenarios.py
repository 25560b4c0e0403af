"""Hundreds of seeded stories full of faults: promises hold after every event, and agreement comes when they stop."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass

import pytest

from tiermesh.sim import coverage
from tiermesh.sim.invariants import Invariants, Violation
from tiermesh.sim.machine import Transition
from tiermesh.sim.scenario import AGREEMENT_S, QUIET_S, Scenario

SEEDS = range(300)


@dataclass(frozen=True)
class Tally:
    violations: list[str]
    transitions: Counter[Transition]
    agreements: list[float]
    elections: int


@pytest.fixture(scope="module")
def tally() -> Tally:
    result = Tally([], Counter(), [], 0)
    elections = 0
    for seed in SEEDS:
        scenario = Scenario(seed)
        try:
            scenario.run()
        except Violation as violation:
            result.violations.append(str(violation))
        result.transitions.update(scenario.world.transitions)
        result.agreements.extend(scenario.agreements)
        elections += scenario.world.elections
    return Tally(result.violations, result.transitions, result.agreements, elections)


@pytest.mark.slow
def test_no_promise_is_broken(tally: Tally) -> None:
    assert not tally.violations, "\n".join(tally.violations)
    assert tally.elections > 2 * len(SEEDS), "the scenarios are too calm to prove anything"


@pytest.mark.slow
def test_every_group_agrees_within_ten_seconds_of_quiet(tally: Tally) -> None:
    assert len(tally.agreements) >= 2 * len(SEEDS)
    assert max(tally.agreements) <= QUIET_S + AGREEMENT_S


@pytest.mark.slow
def test_only_the_transitions_of_the_table_happen_and_every_arrow_of_it_is_taken(tally: Tally) -> None:
    assert coverage.unknown(tally.transitions) == []
    taken = {(before, after) for before, _, after in tally.transitions}
    assert set(coverage.TRANSITIONS) - taken <= {("claim", "join")}, "that one takes a rival's win within milliseconds"


def test_a_seed_tells_the_same_story_twice() -> None:
    one, other = Scenario(7), Scenario(7)
    one.run()
    other.run()
    assert one.log == other.log
    assert one.world.clock.events == other.world.clock.events
    assert one.world.transitions == other.world.transitions


def test_a_violation_names_the_seed_and_the_story(monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = Scenario(7)
    monkeypatch.setattr(Invariants, "showed", _broken)
    with pytest.raises(Violation, match=r"(?s)seed 7 at .* s: made up.*start n"):
        scenario.run()


def _broken(*_: object) -> None:
    raise Violation("made up")


TELL = """
import hashlib
from tiermesh.sim.jobs_scenario import JobScenario
from tiermesh.sim.scenario import Scenario

for story in (*map(Scenario, range(3)), *map(JobScenario, range(2))):
    story.run()
    print(hashlib.sha256("\\\\n".join(story.log).encode()).hexdigest())
"""


def test_a_seed_tells_one_story_in_every_process() -> None:
    """The order of a set is another one in each process."""
    told = {
        subprocess.run(
            [sys.executable, "-c", TELL],
            env=os.environ | {"PYTHONHASHSEED": str(hashes)},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout
        for hashes in (1, 4)
    }
    assert len(told) == 1
