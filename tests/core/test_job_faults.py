"""One record that makes no sense (from a damaged disk, or a node that writes others) stops no other job."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.core.foreman_stage import ME, A, Stage, job

from tiermesh.core import dispatch, job_steps
from tiermesh.core.attempts import Attempt, Told
from tiermesh.core.job_effects import Fault, Save
from tiermesh.core.jobs import Course, Job, JobId
from tiermesh.core.placement import Placement, place
from tiermesh.core.reign import Reign
from tiermesh.types import Ballot

ODD = {"micro_batch_size": "four"}
"""A spec that no node checked."""


def odd_record(name: str = "J0") -> Job:
    """It failed for lack of memory, and a half of "four" is to be tried."""
    failed = Told(seq=1, state="failed", failure="out_of_memory", reason="no memory")
    attempt = Attempt(number=1, ballot=Ballot(3, A), node=ME, spec=ODD, told=failed)
    course = Course(state="running", stamp=(4, Ballot(3, A)))
    return replace(job(name, spec=ODD), course=course, attempts=(attempt,), stamp=(4, Ballot(3, A)))


def test_the_others_go_on_and_it_is_told_once() -> None:
    stage = Stage(A, records=(odd_record(),)).lead()
    assert stage.submit("J1").state == "running"
    stage.says(1, "J1", state="completed", result={"loss": 1.0})
    stage.passes(60.0)
    assert stage.job("J1").state == "completed"
    (fault,) = stage.seen(Fault)
    assert fault.job.id == "J0"
    assert isinstance(fault.error, TypeError)


def test_a_person_sees_what_is_wrong_and_can_cancel_it() -> None:
    stage = Stage(records=(odd_record(),)).lead()
    stage.passes(1.0)
    assert "its record can't be followed: TypeError" in stage.foreman.why(JobId("J0"))
    stage.decide("cancel", "J0")
    stage.passes(1.0)
    assert stage.job("J0").state == "cancelled"
    assert "can't be followed" not in stage.foreman.why(JobId("J0"))


def test_a_better_record_is_followed() -> None:
    stage = Stage(A, records=(odd_record(),)).lead()
    done = Told(seq=2, state="completed", result={"loss": 1.0})
    better = odd_record()
    better = replace(better, attempts=(replace(better.attempts[0], told=done),)).after("complete", Ballot(4, A), 2.0)
    stage.take(stage.foreman.learnt(stage.now, 1.0, (better,), A))
    assert stage.job("J0").state == "completed"
    assert len(stage.seen(Fault)) == 1


@pytest.mark.parametrize("state", ["estimating", "queued"])
def test_nor_when_its_place_is_looked_for(monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    def picky(needs: int | None, wanted: str, *arguments: object, **named: object) -> Placement:
        if wanted == "odd":
            raise ValueError("odd")
        return place(needs, wanted, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(dispatch, "place", picky)
    odd = replace(job("J0", spec={"target_gpu": "odd"}), course=Course(state=state))  # type: ignore[arg-type]
    stage = Stage(A, records=(odd,)).lead()
    assert stage.submit("J1").state == "running"
    stage.passes(5.0)
    assert len(stage.seen(Fault)) == 1


def test_what_goes_wrong_after_a_write_does_not_write_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def treat(reign: Reign, job: Job, _: Attempt) -> None:
        reign.put(job.noting(reign.wall, "odd"))
        raise ValueError("odd")

    monkeypatch.setattr(job_steps, "treat", treat)
    stage = Stage(A, records=(odd_record(),)).lead()
    stage.passes(60.0)
    assert len(stage.seen(Save)) == 1


def test_an_end_that_can_not_be_judged_is_not_kept_and_its_job_is_moved() -> None:
    """A node tells losses that are no numbers."""
    stage = Stage(A).lead()
    stage.submit()
    stage.submit("J2")
    before = stage.at_work()
    for seq in range(1, 40):
        odd = stage.says(seq, of_attempt=before, state="completed", result={"loss": 9.0, "first_loss": "high"})
        assert not odd.kept
        stage.says(seq, "J2", step=seq)
        stage.passes(0.5)
    assert stage.at_work("J2").told == Told(seq=39, step=39)
    assert len(stage.seen(Fault)) == 1
    assert stage.job().attempts[0].fenced or stage.job().state == "queued"
