"""What people are told of a job's record: its newest checkpoint, and where its log is."""

from __future__ import annotations

from dataclasses import replace

from tiermesh.core.attempts import Attempt, Checkpoint, Told
from tiermesh.core.jobs import Asked, Dataset, Job, JobId
from tiermesh.daemon.job_reports import report_of
from tiermesh.protocol.jobs import CheckpointReport, JobReport, LogReport
from tiermesh.types import Ballot, NodeId

ONE, TWO, THREE = (NodeId(letter * 32) for letter in "abc")
NAMES = {ONE: "gpu1", TWO: "gpu2", THREE: "laptop"}
JOB = Job(id=JobId("01J"), asked=Asked(name="faq", spec={}, data=Dataset("0" * 64, "faq.jsonl")))


def attempt(number: int, node: NodeId, checkpoint: Checkpoint | None = None) -> Attempt:
    told = Told(seq=number, step=9, steps=9, checkpoint=checkpoint)
    return Attempt(number=number, ballot=Ballot(1, ONE), node=node, spec={}, told=told)


def told(*attempts: Attempt, brief: bool = False) -> JobReport:
    return report_of(replace(JOB, attempts=attempts), NAMES.__getitem__, "laptop", brief=brief)


def test_the_checkpoint_furthest_on_is_told_with_those_that_have_it() -> None:
    first = attempt(1, ONE, Checkpoint(120, "d" * 64, (ONE, THREE)))
    assert told(first).checkpoint == CheckpointReport(step=120, nodes=["gpu1", "laptop"])
    assert told(first, attempt(2, TWO)).checkpoint == CheckpointReport(step=120, nodes=["gpu1", "laptop"])
    further = attempt(2, TWO, Checkpoint(140, "e" * 64, (TWO,)))
    assert told(first, further).checkpoint == CheckpointReport(step=140, nodes=["gpu2"])


def test_the_log_is_that_of_the_newest_attempt() -> None:
    log = LogReport(attempt=2, node="gpu2", path="/api/jobs/01J/logs?attempt=2")
    assert told(attempt(1, ONE), attempt(2, TWO)).log == log


def test_without_an_attempt_and_in_a_list_there_is_neither() -> None:
    for report in (told(), told(attempt(1, ONE, Checkpoint(1)), brief=True)):
        assert (report.checkpoint, report.log) == (None, None)
