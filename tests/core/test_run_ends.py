"""What a node keeps of the runs of a job that is over, and for how long."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tiermesh.core.attempts import Attempt, Told
from tiermesh.core.jobs import Asked, Course, Dataset, Job, JobId
from tiermesh.core.run_ends import COMPLETED_KEPT_S, OTHERS_KEPT_S, Ends, artifact_on, ends
from tiermesh.types import NO_BALLOT, JobState, NodeId

HERE, THERE = NodeId("a" * 32), NodeId("b" * 32)
ENDED_AT = 1_800_000_000.0


def job(name: str, state: JobState, artifact: str = "1" * 64, ended_at: float | None = ENDED_AT) -> Job:
    told = Told(seq=1, state="completed", artifact=artifact)
    attempt = Attempt(number=1, ballot=NO_BALLOT, node=HERE, spec={}, told=told)
    return Job(
        id=JobId(name),
        asked=Asked(name=name, spec={}, data=Dataset("0" * 64, "faq")),
        course=Course(state=state, ended_at=ended_at),
        attempts=(attempt,) if state == "completed" else (),
    )


J = JobId("J")
DAY, MONTH = COMPLETED_KEPT_S, OTHERS_KEPT_S
CASES = [
    (job("J", "completed"), DAY - 1, Ends((), (J,))),
    (job("J", "completed"), DAY + 1, Ends((J,), ())),
    (job("J", "completed", artifact=""), 100 * MONTH, Ends((), ())),
    (job("J", "cancelled"), MONTH - 1, Ends((), ())),
    (job("J", "cancelled"), MONTH + 1, Ends((J,), ())),
    (job("J", "failed"), MONTH - 1, Ends((), ())),
    (job("J", "failed"), MONTH + 1, Ends((J,), ())),
    (job("J", "refused"), MONTH + 1, Ends((J,), ())),
    (job("J", "running"), 100 * MONTH, Ends((), ())),
    (job("J", "queued"), 100 * MONTH, Ends((), ())),
    (job("J", "completed", ended_at=None), 100 * MONTH, Ends((), ())),
]


@pytest.mark.parametrize(("of", "after_s", "expected"), CASES)
def test_it_is_kept_for_its_time(of: Job, after_s: float, expected: Ends) -> None:
    assert ends([of], ENDED_AT + after_s) == expected


def test_the_longest_over_go_first() -> None:
    jobs = [job(name, "completed", ended_at=ENDED_AT + at) for name, at in (("C", 3), ("A", 1), ("B", 2))]
    assert ends(jobs, ENDED_AT).early == ("A", "B", "C")
    assert ends(jobs, ENDED_AT + DAY + 2.5).due == ("A", "B")


def test_a_result_is_looked_for_where_it_was_trained() -> None:
    done = job("J", "completed")
    assert (artifact_on(done, HERE), artifact_on(done, THERE)) == ("1" * 64, None)
    assert artifact_on(replace(done, attempts=()), HERE) is None
