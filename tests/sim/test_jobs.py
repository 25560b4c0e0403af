"""Hundreds of seeded stories full of faults: jobs keep their promises after every event, and end when the faults do."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tiermesh.core.attempts import Told
from tiermesh.core.jobs import Asked, Course, Dataset, Job, JobId
from tiermesh.sim.invariants import Violation
from tiermesh.sim.jobs_disks import records_on
from tiermesh.sim.jobs_invariants import JobInvariants
from tiermesh.sim.jobs_machine import JobMachine
from tiermesh.sim.jobs_scenario import END_S, JobScenario
from tiermesh.types import NodeId

SEEDS = range(300)


@dataclass(frozen=True)
class Tally:
    violations: list[str]
    ended_in_s: list[float]
    orders: int
    kinds: frozenset[str]
    """Of everything that happened to jobs."""
    forgotten: int
    unended: list[str]
    """Jobs that have no end on all disks together, of stories that ended well."""


@pytest.fixture(scope="module")
def tally() -> Tally:
    violations, ended, orders, kinds, forgotten, unended = [], [], 0, set(), 0, []
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
        records = records_on(each for each in scenario.world.machines.values() if not each.gone)
        forgotten += sum(job.forgotten for job in records.values())
        unended += [f"seed {seed}: {job.id} is {job.state}" for job in records.values() if not job.is_over]
    return Tally(violations, ended, orders, frozenset(kinds), forgotten, unended)


@pytest.mark.slow
def test_no_promise_is_broken_and_every_job_ends(tally: Tally) -> None:
    assert not tally.violations, "\n".join(tally.violations)
    assert max(tally.ended_in_s) < END_S
    assert not tally.unended, "what a report says is what all disks know together"


@pytest.mark.slow
def test_the_stories_have_everything_in_them(tally: Tally) -> None:
    assert tally.orders > 5 * len(SEEDS)
    assert tally.forgotten > len(SEEDS) / 3
    assert tally.kinds >= {
        "submit", "admit", "approve", "ask", "refuse", "optimize", "begin", "interrupt", "retry", "reconsider",
        "complete", "fail", "cancel", "evaluation", "result", "postpone",
    }  # fmt: skip


def test_a_job_is_as_all_disks_know_it_together() -> None:
    """Whichever machine comes last: one that was away has an old record."""
    asked = Asked(name="faq", spec={}, data=Dataset("0" * 64, "faq.jsonl"))
    old, new = (
        JobMachine(NodeId(name), disk={JobId("J1"): Job(id=JobId("J1"), asked=asked, course=course)})
        for name, course in (("old", Course(state="running")), ("new", Course(state="failed")))
    )
    assert records_on((old, new)) == records_on((new, old)) == new.disk


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
