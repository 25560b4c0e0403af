"""A job's record, as it is told to people and programs."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tiermesh.core.attempts import Attempt
from tiermesh.core.evaluation import demands
from tiermesh.core.jobs import Dataset, Job
from tiermesh.protocol.jobs import (
    CheckpointReport,
    DataRef,
    EstimateReport,
    GateReport,
    HappenedReport,
    JobReport,
    LogReport,
    Progress,
    TriedReport,
)
from tiermesh.types import NodeId


def report_of(
    job: Job, name_of: Callable[[NodeId], str], here: str, *, served: Iterable[str] = (), brief: bool = False
) -> JobReport:
    """`name_of` a node; `here` is who tells, for a job that no node has to do with yet. `served` are the names of
    nodes that serve its result. `brief` leaves out what is long."""
    last = job.attempts[-1] if job.attempts else None
    shown = job.result or last
    told = None if shown is None else shown.told
    node = name_of(shown.node) if shown else name_of(job.estimate.node) if job.estimate else here
    return JobReport(
        id=job.id,
        name=job.name,
        state=job.state,
        node=node,
        reason=job.reason or (told.reason if told is not None and job.is_over else ""),
        failure=job.failure,
        attempt=shown.number if shown else 1,
        retries=shown.retries if shown else 0,
        model=str(job.spec.get("model_name", "")),
        method=str(job.spec.get("method", "")),
        submitted_at=job.submitted_at,
        started_at=job.started_at,
        ended_at=job.ended_at,
        progress=_progress(shown),
        checkpoint=None if brief else _checkpoint(job, name_of),
        log=None if brief else _log(job, name_of),
        result=dict(told.result) if told is not None and job.state == "completed" else {},
        spec={} if brief else dict(job.spec),
        data=None if brief else _data(job.data),
        eval_data=None if brief or job.eval_data is None else _data(job.eval_data),
        estimate=_estimate(job, name_of),
        gate=_gate(job),
        demands="" if brief else demands(job.asked.gates),
        attempts=[] if brief else [_tried(job, attempt, name_of) for attempt in job.attempts],
        happened=[] if brief else [HappenedReport(at=h.at, kind=h.kind, text=h.text) for h in job.happened],
        served=sorted(served),
    )


def _progress(attempt: Attempt | None) -> Progress:
    if attempt is None or attempt.told is None:
        return Progress()
    told = attempt.told
    return Progress(
        phase=told.phase,
        step=told.step,
        steps=told.steps,
        loss=told.loss,
        tokens_per_s=told.tokens_per_s,
        eta_s=told.eta_s,
    )


def _checkpoint(job: Job, name_of: Callable[[NodeId], str]) -> CheckpointReport | None:
    saved = job.checkpoint
    return None if saved is None else CheckpointReport(step=saved.step, nodes=[name_of(each) for each in saved.holders])


def _log(job: Job, name_of: Callable[[NodeId], str]) -> LogReport | None:
    if not job.attempts:
        return None
    last = job.attempts[-1]
    path = f"/api/jobs/{job.id}/logs?attempt={last.number}"
    return LogReport(attempt=last.number, node=name_of(last.node), path=path)


def _data(data: Dataset) -> DataRef:
    return DataRef(sha256=data.sha256, name=data.name)


def _estimate(job: Job, name_of: Callable[[NodeId], str]) -> EstimateReport | None:
    found = job.estimate
    if found is None:
        return None
    return EstimateReport(
        node=name_of(found.node),
        device=found.device,
        why=next((each.text for each in reversed(job.happened) if each.kind == "estimate"), ""),
        memory_bytes=found.memory_bytes,
        memory_bytes_low=found.memory_bytes_low,
        memory_bytes_high=found.memory_bytes_high,
        seconds=found.seconds,
        seconds_low=found.seconds_low,
        seconds_high=found.seconds_high,
        usd=found.usd,
        usd_low=found.usd_low,
        usd_high=found.usd_high,
        usd_per_second=found.usd_per_second,
        steps=found.steps,
        effective_batch=found.effective_batch,
        basis=found.basis,
    )


_VERDICTS: dict[str, str] = {"admit": "approve", "approve": "approve", "ask": "wait", "refuse": "refuse"}
"""What the gate said, by the event that it was."""


def _gate(job: Job) -> GateReport | None:
    said = next((each for each in reversed(job.happened) if each.kind in _VERDICTS), None)
    if said is None:
        return None
    return GateReport.model_validate({"decision": _VERDICTS[said.kind], "reason": said.text})


def _tried(job: Job, attempt: Attempt, name_of: Callable[[NodeId], str]) -> TriedReport:
    told = attempt.told
    return TriedReport(
        number=attempt.number,
        node=name_of(attempt.node),
        state=job.state_of(attempt),
        cause=attempt.cause,
        why=attempt.why,
        ordered_at=attempt.ordered_at,
        reason=told.reason if told else "",
        failure=told.failure if told else None,
        failed_gates=list(told.failed_gates) if told else [],
        step=told.step if told else 0,
        steps=told.steps if told else 0,
    )
