"""A job that is over, for a person: what is left of it, where, and how its log is read."""

from __future__ import annotations

from typing import Any

from tiermesh.cli.job_view import ended_lines, job_lines
from tiermesh.protocol.jobs import CheckpointReport, JobReport, LogReport, TriedReport

LOG = LogReport(attempt=2, node="gpu1", path="/api/jobs/01J/logs?attempt=2")
TRIED = TriedReport(number=2, node="gpu1", state="completed")


def job(**facts: Any) -> JobReport:
    known: dict[str, Any] = {"id": "01J", "name": "faq", "state": "completed", "node": "gpu1", "attempts": [TRIED]}
    return JobReport(**known | facts)


def test_the_newest_checkpoint_and_the_log_are_told() -> None:
    saved = CheckpointReport(step=120, nodes=["gpu1", "laptop"])
    expected = [
        "checkpoint  after step 120, saved on gpu1, laptop",
        "log         of attempt 2, on gpu1: mesh jobs logs faq",
    ]
    found = job(checkpoint=saved, log=LOG)
    for lines in (ended_lines(found), job_lines(found, 0.0)):
        assert [line for line in lines if line.startswith(("checkpoint", "log"))] == expected


def test_of_a_failure_it_is_said_how_to_read_more() -> None:
    failed = job(state="failed", log=LOG, attempts=[TRIED.model_copy(update={"failure": "non_finite"})])
    log = "log         of attempt 2, on gpu1: mesh jobs logs faq; why it failed: mesh jobs crash faq"
    assert log in ended_lines(failed)


def test_the_use_of_a_gpu_is_told_where_it_is_known() -> None:
    assert "GPU busy    97% of the time" in ended_lines(job(result={"step": 9, "gpu_use": 0.968}))
    for unknown in ({"gpu_use": None}, {}):
        assert not any(line.startswith("GPU") for line in ended_lines(job(result={"step": 9} | unknown)))


def test_an_older_node_tells_neither_checkpoint_nor_log() -> None:
    assert not any(line.startswith(("checkpoint", "log")) for line in ended_lines(job()))
