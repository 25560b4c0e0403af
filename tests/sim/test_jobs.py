"""Hundreds of seeded stories full of faults: jobs keep their promises after every event, and end when the faults do."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tiermesh.core.attempts import Told
from tiermesh.sim.invariants import Violation
from tiermesh.sim.jobs_invariants import JobInvariants
from tiermesh.sim.jobs_scenario import END_S, JobScenario

SEEDS = range(300)


@dataclass(frozen=True)
class Tally:
    violations: list[str]
    ended_in_s: list[float]
    orders: int
    kinds: frozenset[str]
    """Of everything that happened to jobs."""


@pytest.fixture(scope="module")
def tally() -> Tally:
    violations, ended, orders, kinds = [], [], 0, set()
    for seed in SEEDS:
        scenario = JobScenario(seed)
        try:
            scenario.run()
        except Violation as violation:
            violations.append(str(violation))
        ended.append(scenario.ended_in_s)
        orders += scenario.world.orders
        disks = [machine.disk for machine in scenario.world.machines.values()]
        kinds |= {event.kind for disk in disks for job in disk.values() for event in job.happened}
    return Tally(violations, ended, orders, frozenset(kinds))


@pytest.mark.slow
def test_no_promise_is_broken_and_every_job_ends(tally: Tally) -> None:
    assert not tally.violations, "\n".join(tally.violations)
    assert max(tally.ended_in_s) < END_S


@pytest.mark.slow
def test_the_stories_have_everything_in_them(tally: Tally) -> None:
    assert tally.orders > 5 * len(SEEDS)
    assert tally.kinds >= {
        "submit", "admit", "approve", "ask", "refuse", "optimize", "begin", "interrupt", "retry", "reconsider",
        "complete", "fail", "cancel", "evaluation", "result",
    }  # fmt: skip


def test_a_seed_tells_the_same_story_twice() -> None:
    one, other = JobScenario(3), JobScenario(3)
    one.run()
    other.run()
    assert one.log == other.log
    assert one.world.clock.events == other.world.clock.events


def test_a_violation_names_the_seed_and_the_story(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JobInvariants, "written", _broken)
    with pytest.raises(Violation, match=r"(?s)seed 3 at .* s: made up.*start n"):
        JobScenario(3).run()


def _broken(*_: object) -> None:
    raise Violation("made up")


def test_what_is_told_of_a_run_has_no_gates_of_its_own() -> None:
    """Whether a result is good is for the coordinator to say; the simulation relies on it."""
    assert Told(state="completed").counts
    assert not Told(state="completed", failed_gates=("the loss is 9",)).counts
