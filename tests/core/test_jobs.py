"""A job's life: the table, what it keeps, and who is next."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import get_args

import pytest

from tiermesh.core.lone_jobs import OVER, TRANSITIONS, Dataset, Job, JobEvent, JobId, next_in_line, unique_name
from tiermesh.errors import NotPossibleNow
from tiermesh.types import JobState

JOB = Job(id=JobId("1"), name="faq", spec={"seed": 1}, data=Dataset("a" * 64, "faq.jsonl"), submitted_at=10.0)
STATES, EVENTS = get_args(JobState), get_args(JobEvent)


@pytest.mark.parametrize(("state", "event"), sorted(set(product(STATES, EVENTS)) - set(TRANSITIONS)))
def test_what_the_table_does_not_have_is_refused_by_name(state: JobState, event: JobEvent) -> None:
    with pytest.raises(NotPossibleNow, match=f"job faq is {state}: nothing is left to {event}"):
        replace(JOB, state=state).after(event, 11.0)


def test_every_state_is_reached_and_only_the_last_ones_are_left_by_nothing() -> None:
    reached = {"queued"}
    while more := {after for (before, _), after in TRANSITIONS.items() if before in reached} - reached:
        reached |= more
    assert reached == set(STATES)
    assert set(STATES) - {before for before, _ in TRANSITIONS} == OVER


@pytest.mark.parametrize("state", sorted(set(STATES) - OVER))
def test_whatever_goes_on_can_be_ended(state: JobState) -> None:
    """By a person, or by the end of its worker."""
    events = ("cancel", "interrupt") if state != "cancelling" else ("interrupt",)
    job = replace(JOB, state=state)
    for event in events:
        if (job.state, event) in TRANSITIONS:
            job = job.after(event, 1.0)  # type: ignore[arg-type]
    assert job.is_over


def test_times_are_those_of_the_first_beginning_and_of_the_end() -> None:
    job = JOB.after("begin", 11.0).after("interrupt", 12.0, reason="its node ended").after("begin", 13.0)
    assert (job.started_at, job.ended_at, job.reason) == (11.0, None, "")
    done = job.after("complete", 14.0, result={"step": 7})
    assert (done.ended_at, done.result, done.failure) == (14.0, {"step": 7}, None)
    failed = job.after("fail", 15.0, reason="too large", failure="out_of_memory")
    assert (failed.failure, failed.reason) == ("out_of_memory", "too large")
    assert job.after("cancel", 15.0).after("fail", 16.0, failure="out_of_memory").failure is None


def test_the_longest_waiting_is_next() -> None:
    early, late = replace(JOB, id=JobId("2"), submitted_at=1.0), replace(JOB, id=JobId("0"), submitted_at=2.0)
    assert next_in_line([late, early, replace(JOB, state="running", submitted_at=0.0)]) is early
    assert next_in_line([replace(JOB, state="failed")]) is None


def test_names_are_labels_made_unique() -> None:
    assert unique_name("faq", []) == "faq"
    assert unique_name("faq", ["faq", "faq-2", "faq-4"]) == "faq-3"


def test_a_request_is_the_same_whatever_its_name() -> None:
    assert JOB.is_same_request(replace(JOB, name="other", state="failed"))
    assert not JOB.is_same_request(replace(JOB, spec={"seed": 2}))
    assert not JOB.is_same_request(replace(JOB, eval_data=JOB.data))
