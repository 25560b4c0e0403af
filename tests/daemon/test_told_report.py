"""From a job's record and events to its report."""

from __future__ import annotations

from typing import Any

from tiermesh.daemon.api.told_report import ATTEMPT_STRIDE, report_of
from tiermesh.protocol.jobs import EstimateReport, GateReport, HappenedReport, JobReport, TriedReport
from tiermesh.protocol.training_events import (
    Completed,
    Evaluated,
    Failed,
    Phase,
    Resumed,
    StepDone,
    TrainingEvent,
    Warned,
    to_line,
)


def step(number: int, loss: float | None, at: float, memory: int = 100) -> StepDone:
    return StepDone(step=number, steps=4, epoch=1.0, loss=loss, learning_rate=1e-4, at=at, memory_bytes=memory)


def lines(*attempts: list[TrainingEvent]) -> list[tuple[int, bytes]]:
    return [
        (number * ATTEMPT_STRIDE + line, to_line(event))
        for number, events in enumerate(attempts, 1)
        for line, event in enumerate(events, 1)
    ]


def job(**fields: Any) -> JobReport:
    known: dict[str, Any] = {
        "id": "01J", "name": "faq", "state": "completed", "node": "desk", "model": "m", "method": "lora",
        "spec": {"seed": 1},
        "estimate": EstimateReport(
            node="gpu1", memory_bytes=100, memory_bytes_low=90, memory_bytes_high=120, seconds=10, seconds_low=8,
            seconds_high=15, usd=0.1, usd_low=0.08, usd_high=0.15, usd_per_second=0.01, basis="a probe of 3 steps",
        ),
        "gate": GateReport(decision="approve", reason="under 2.00 USD"),
        "attempts": [TriedReport(number=1, node="gpu1", state="completed", step=4, steps=4)],
    }  # fmt: skip
    return JobReport.model_validate(known | fields)


FIRST: list[TrainingEvent] = [
    Phase(phase="train", state="started", at=100.0),
    step(1, 4.0, 101.0),
    step(2, 3.0, 102.0, memory=300),
]
SECOND: list[TrainingEvent] = [
    Resumed(step=1, checkpoint="step-1", at=110.0),
    step(2, 3.5, 111.0),
    step(3, None, 112.0),
    Evaluated(step=3, loss=2.5, at=112.5),
    Warned(message="hot", at=113.0),
    Completed(step=4, result="/r", loss=2.0, held_out_loss=2.5, held_out_loss_before=5.0, at=114.0),
]


def test_an_undisturbed_run() -> None:
    report = report_of(job(), lines([*FIRST, step(3, 2.0, 103.0)]), 500.0)
    assert report.curve.losses == ((1, 4.0), (2, 3.0), (3, 2.0))
    assert report.summary.actual_seconds == 3.0
    assert report.summary.actual_usd == 0.03
    assert report.summary.actual_memory == 300
    assert report.gate == "approve: under 2.00 USD"
    assert report.estimate_basis == "a probe of 3 steps"
    assert report.written_at == 500.0


def test_steps_done_again_count_as_they_came_out_at_last() -> None:
    tried = [
        TriedReport(number=1, node="gpu1", state="lost", step=2, steps=4),
        TriedReport(number=2, node="desk", state="completed", cause="moved", step=4, steps=4),
    ]
    report = report_of(job(attempts=tried), lines(FIRST, SECOND), 500.0)
    assert report.curve.losses == ((1, 4.0), (2, 3.5))
    assert report.curve.held_out == ((3, 2.5),)
    assert [attempt.seconds for attempt in report.attempts] == [2.0, 4.0]
    assert report.summary.actual_seconds == 6.0
    assert report.summary.actual_usd is None, "the other node's price is not known"
    assert (report.summary.final_loss, report.summary.held_out_loss_before) == (2.0, 5.0)


def test_what_the_mesh_did_and_what_the_run_told_are_one_timeline() -> None:
    happened = [
        HappenedReport(at=99.0, kind="ordered", text="attempt 1 on gpu1"),
        HappenedReport(at=105.0, kind="retry", text="half the learning rate"),
    ]
    report = report_of(job(happened=happened), lines(FIRST, SECOND), 500.0)
    assert [moment.at for moment in report.timeline] == [99.0, 100.0, 105.0, 110.0, 113.0, 114.0]
    assert report.timeline[1].text == "train started"


def test_gates_that_a_result_did_not_pass_are_named_by_attempt() -> None:
    tried = [TriedReport(number=1, node="gpu1", state="failed", failed_gates=["final loss 2.5 is above 2.0"])]
    report = report_of(job(attempts=tried), [], 500.0)
    assert report.evaluation_failures == ("attempt 1: final loss 2.5 is above 2.0",)


def test_a_job_without_events_or_estimate() -> None:
    report = report_of(job(estimate=None, gate=None, attempts=[], state="queued"), [], 500.0)
    assert report.summary.estimated_usd is None
    assert report.summary.actual_seconds is None
    assert report.curve.losses == ()


def test_lines_that_are_no_events_are_passed_over() -> None:
    report = report_of(job(), [(1, b"{"), (2, b'{"event": "later"}'), (3, to_line(step(1, 4.0, 1.0)))], 500.0)
    assert report.curve.losses == ((1, 4.0),)


def test_a_failure_says_how_its_crash_report_is_had() -> None:
    failed = Failed(kind="non_finite", message="NaN", crash="20261122T100000Z-7", at=115.0)
    unreported = Failed(kind="disk_full", message="full", at=116.0)
    told = report_of(job(state="failed"), lines(FIRST, [failed, unreported]), 120.0)
    assert [moment.text for moment in told.timeline if moment.phase == "failed"] == [
        "non_finite: NaN (the stack: mesh jobs crash faq --attempt 2)",
        "disk_full: full",
    ]
