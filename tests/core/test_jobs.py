"""A job's record: its table of states, what follows from its attempts, and the join of two records."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiermesh.core.attempts import Attempt, Checkpoint, Told
from tiermesh.core.evaluation import Gates
from tiermesh.core.job_states import ENDS, OVER, TRANSITIONS, JobEvent
from tiermesh.core.jobs import (
    HAPPENED_LIMIT,
    TEXT_LIMIT,
    Asked,
    Course,
    Dataset,
    Happened,
    Job,
    JobId,
    job_from_dict,
    job_to_dict,
    join,
    unique_name,
)
from tiermesh.errors import NotPossibleNow
from tiermesh.types import AttemptState, Ballot, JobState, NodeId

A, B = NodeId("a" * 32), NodeId("b" * 32)
LOW, HIGH = Ballot(3, A), Ballot(4, B)
ASKED = Asked(name="faq", spec={"seed": 1}, data=Dataset("a" * 64, "faq.jsonl"), submitted_at=10.0)
JOB = Job(id=JobId("1"), asked=ASKED)
STATES, EVENTS = get_args(JobState), get_args(JobEvent)


def in_state(state: JobState) -> Job:
    return replace(JOB, course=Course(state=state))


def attempt(number: int, ballot: Ballot = LOW, **changes: object) -> Attempt:
    return Attempt(number=number, ballot=ballot, node=A, spec={"seed": 1}, **changes)  # type: ignore[arg-type]


DONE = Told(seq=9, state="completed", result={"loss": 1.0})


class TestStates:
    @pytest.mark.parametrize(("state", "event"), sorted(set(product(STATES, EVENTS)) - set(TRANSITIONS)))
    def test_what_the_table_does_not_have_is_refused_by_name(self, state: JobState, event: JobEvent) -> None:
        with pytest.raises(NotPossibleNow, match=f"job faq is {state}: nothing is left to {event}"):
            in_state(state).after(event, LOW, 11.0)

    def test_every_state_is_reached(self) -> None:
        reached = {"estimating"}
        while more := {after for (before, _), after in TRANSITIONS.items() if before in reached} - reached:
            reached |= more
        assert reached == set(STATES)

    def test_after_an_end_only_a_better_one_comes(self) -> None:
        for (before, _), after in TRANSITIONS.items():
            if before in OVER:
                assert after == "completed"
                assert ENDS[before] < ENDS[after]

    @pytest.mark.parametrize("state", sorted(set(STATES) - OVER - {"cancelling"}))
    def test_whatever_goes_on_can_be_cancelled(self, state: JobState) -> None:
        job = in_state(state).after("cancel", LOW, 1.0)
        assert job.state == ("cancelling" if state == "running" else "cancelled")

    @pytest.mark.parametrize("state", sorted(set(STATES) - {"completed"}))
    def test_a_result_always_counts(self, state: JobState) -> None:
        assert in_state(state).after("complete", LOW, 1.0).state == "completed"

    def test_a_change_has_a_later_stamp_a_reason_and_an_event(self) -> None:
        job = in_state("running").after("interrupt", LOW, 12.0, reason="its node ended")
        assert job.stamp == job.course.stamp == (1, LOW)
        assert (job.state, job.reason, job.ended_at) == ("queued", "its node ended", None)
        assert job.happened == (Happened(12.0, "interrupt", "its node ended"),)
        failed = in_state("running").after("fail", LOW, 13.0, reason="x" * 9999, failure="out_of_memory")
        assert (failed.ended_at, failed.failure, len(failed.reason)) == (13.0, "out_of_memory", TEXT_LIMIT)

    def test_events_of_one_moment_stand_in_the_order_in_which_they_followed(self) -> None:
        """Their kinds would put `begin` before the `interrupt` that it followed."""
        job = in_state("running").after("interrupt", LOW, 12.0, reason="its node is away").after("begin", LOW, 12.0)
        job = job.noting(12.0, "evaluation", "passed").after("complete", LOW, 12.0)
        kinds = ["interrupt", "begin", "evaluation", "complete"]
        assert [each.kind for each in job.happened] == kinds
        assert [each.kind for each in job_from_dict(job_to_dict(job)).happened] == kinds
        assert [each.at for each in job.happened] == pytest.approx([12.0] * 4, abs=1e-5)

    def test_nor_does_an_effect_stand_before_its_cause_when_the_next_coordinators_clock_is_behind(self) -> None:
        job = in_state("queued").after("begin", LOW, 1.7e9 + 60).after("complete", HIGH, 1.7e9)
        assert [each.kind for each in job.happened] == ["begin", "complete"]
        assert job.ended_at == 1.7e9

    def test_an_end_says_when_and_what_kind_only_when_it_is_one(self) -> None:
        job = in_state("running").after("retry", LOW, 12.0, failure="out_of_memory")
        assert (job.failure, job.ended_at) == (None, None)


class TestAttempts:
    def test_the_result_is_that_of_the_first_that_counts(self) -> None:
        first, other_half = attempt(1, told=DONE, fenced=True), attempt(1, HIGH, told=DONE)
        wanting = attempt(0, told=replace(DONE, failed_gates=("the loss is 9",)))
        job = replace(JOB, attempts=(wanting, first, other_half, attempt(2)), course=Course(state="completed"))
        assert job.result is first
        assert [job.state_of(each) for each in job.attempts] == ["failed", "completed", "superseded", "stopped"]

    def test_the_current_one_is_the_newest_that_is_neither_ended_nor_replaced(self) -> None:
        live, fenced = attempt(1), attempt(2, fenced=True)
        job = replace(JOB, attempts=(live, fenced, attempt(3, told=Told(state="failed"))))
        assert job.current is live
        assert replace(job, attempts=(fenced,)).current is None

    def test_how_each_stands(self) -> None:
        stands = [
            (attempt(1), "ordered"),
            (attempt(1, told=Told()), "running"),
            (attempt(1, told=Told(state="stopped")), "stopped"),
            (attempt(1, fenced=True), "superseded"),
            (attempt(1, told=Told(state="failed"), fenced=True), "failed"),
        ]
        for each, standing in stands:
            assert replace(JOB, attempts=(each,)).state_of(each) == standing

    def test_times_retries_and_checkpoint_are_those_of_all(self) -> None:
        early = attempt(1, ordered_at=11.0, told=Told(checkpoint=Checkpoint(7, "x")))
        late = attempt(2, ordered_at=12.0, retries=1, told=Told(checkpoint=Checkpoint(3, "y")))
        job = replace(JOB, attempts=(early, late))
        assert (job.started_at, job.retries, job.checkpoint) == (11.0, 1, Checkpoint(7, "x"))
        assert (JOB.started_at, JOB.retries, JOB.checkpoint, JOB.result) == (None, 0, None, None)


class TestJoin:
    """Whatever two nodes know, both together know it, in whatever order they hear of it."""

    def test_an_end_beats_what_is_none_and_a_better_end_a_worse_one(self) -> None:
        ranked = ["queued", "refused", "failed", "cancelled", "completed"]
        for worse, better in product(range(5), range(5)):
            if worse < better:
                late = replace(JOB, course=Course(state=ranked[worse], stamp=(9, HIGH)))  # type: ignore[arg-type]
                early = replace(JOB, course=Course(state=ranked[better], stamp=(1, LOW)))  # type: ignore[arg-type]
                assert join(late, early).state == ranked[better]

    def test_of_two_that_go_on_the_later_counts(self) -> None:
        early = replace(JOB, course=Course(state="running", stamp=(3, HIGH)))
        late = replace(JOB, course=Course(state="queued", stamp=(4, LOW)))
        assert join(early, late).state == join(late, early).state == "queued"

    def test_attempts_are_united_by_number_and_ballot(self) -> None:
        one = replace(JOB, attempts=(attempt(1), attempt(2)))
        other = replace(JOB, attempts=(attempt(1, fenced=True), attempt(2, HIGH)))
        joined = join(one, other)
        assert [each.id for each in joined.attempts] == [(1, LOW), (2, LOW), (2, HIGH)]
        assert [each.fenced for each in joined.attempts] == [True, False, False]

    def test_what_was_said_last_counts_and_an_end_before_all(self) -> None:
        running, later = Told(seq=3, step=3), Told(seq=12, step=12)
        failed = Told(seq=4, state="failed")
        for one, other, expected in ((running, later, later), (later, failed, failed), (failed, DONE, DONE)):
            mine, theirs = (replace(JOB, attempts=(attempt(1, told=told),)) for told in (one, other))
            assert join(mine, theirs).attempts[0].told == expected

    def test_what_was_said_once_is_said_for_ever(self) -> None:
        one = replace(JOB, cancel_asked=True, forgotten=True, holders=(A,), happened=(Happened(1.0, "submit"),))
        other = replace(JOB, approved=1, holders=(B,), happened=(Happened(2.0, "cancel"),))
        joined = join(one, other)
        assert (joined.cancel_asked, joined.forgotten) == (True, True)
        assert (joined.approved, joined.holders) == (1, (A, B))
        assert [each.kind for each in joined.happened] == ["submit", "cancel"]

    def test_of_a_submission_to_both_halves_the_earlier_counts(self) -> None:
        again = replace(JOB, asked=replace(ASKED, name="faq-2", submitted_at=11.0))
        assert join(JOB, again).name == join(again, JOB).name == "faq"

    def test_the_newest_events_are_kept(self) -> None:
        one = replace(JOB, happened=tuple(Happened(float(at), "begin") for at in range(HAPPENED_LIMIT)))
        joined = join(one, replace(JOB, happened=(Happened(1e6, "complete"),)))
        assert len(joined.happened) == HAPPENED_LIMIT
        assert joined.happened[-1].kind == "complete"


ballots = st.sampled_from([LOW, HIGH])
stamps = st.tuples(st.integers(0, 3), ballots)
tolds = st.builds(
    Told,
    seq=st.integers(0, 3),
    state=st.sampled_from(get_args(AttemptState)),
    step=st.integers(0, 2),
    result=st.sampled_from([{}, {"loss": 1.0}]),
    failed_gates=st.sampled_from([(), ("loss",)]),
)
attempts = st.builds(
    Attempt,
    number=st.integers(1, 3),
    ballot=ballots,
    node=st.sampled_from([A, B]),
    spec=st.sampled_from([{"seed": 1}, {"seed": 2}]),
    retries=st.integers(0, 1),
    told=st.none() | tolds,
    fenced=st.booleans(),
)
records = st.builds(
    Job,
    id=st.just(JobId("1")),
    asked=st.builds(
        Asked,
        name=st.sampled_from(["faq", "faq-2"]),
        spec=st.just({}),
        data=st.just(Dataset("a" * 64, "x")),
        gates=st.sampled_from([Gates(), Gates(max_gap=None)]),
        submitted_at=st.sampled_from([1.0, 2.0]),
    ),
    course=st.builds(
        Course,
        stamp=stamps,
        state=st.sampled_from(STATES),
        reason=st.sampled_from(["", "x"]),
        edition=st.integers(0, 1),
    ),
    attempts=st.lists(attempts, max_size=4, unique_by=lambda each: each.id).map(
        lambda found: tuple(sorted(found, key=lambda each: each.id))
    ),
    happened=st.lists(st.builds(Happened, at=st.sampled_from([1.0, 2.0]), kind=st.sampled_from(["begin", "cancel"])))
    .map(set)
    .map(lambda found: tuple(sorted(found))),
    holders=st.sampled_from([(), (A,), (A, B)]),
    approved=st.integers(-1, 1),
    cancel_asked=st.booleans(),
    forgotten=st.booleans(),
    stamp=stamps,
)


LAW = settings(deadline=None, max_examples=200)
"""A slow machine breaks no law."""


class TestLaws:
    """Of a join, for any records at all, also such as no coordinator would write."""

    @given(records, records)
    @LAW
    def test_commutative(self, one: Job, other: Job) -> None:
        assert join(one, other) == join(other, one)

    @given(records, records, records)
    @LAW
    def test_associative(self, one: Job, other: Job, third: Job) -> None:
        assert join(join(one, other), third) == join(one, join(other, third))

    @given(records, records)
    @LAW
    def test_idempotent(self, one: Job, other: Job) -> None:
        joined = join(one, other)
        assert join(one, one) == one
        assert join(joined, one) == join(joined, other) == join(joined, joined) == joined

    @given(records)
    @LAW
    def test_a_record_travels_unchanged(self, one: Job) -> None:
        assert job_from_dict(job_to_dict(one)) == one


def test_names_are_labels_made_unique() -> None:
    assert unique_name("faq", []) == "faq"
    assert unique_name("faq", ["faq", "faq-2", "faq-4"]) == "faq-3"


def test_a_request_is_the_same_whatever_its_name() -> None:
    assert JOB.is_same_request(replace(JOB, asked=replace(ASKED, name="other", submitted_at=99.0)))
    assert not JOB.is_same_request(replace(JOB, asked=replace(ASKED, spec={"seed": 2})))
    assert not JOB.is_same_request(replace(JOB, asked=replace(ASKED, eval_data=ASKED.data)))
    assert not JOB.is_same_request(replace(JOB, asked=replace(ASKED, gates=Gates(max_final_loss=None))))
