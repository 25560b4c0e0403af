"""From what a job's record and its run's events say to the report of it. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from tiermesh.core.report import Curve, Moment, Range, Report, Summary, Tried
from tiermesh.protocol.jobs import EstimateReport, JobReport, TriedReport
from tiermesh.protocol.training_events import (
    Completed,
    DataReady,
    Evaluated,
    Failed,
    Phase,
    Relieved,
    Restarted,
    Resumed,
    RolledBack,
    StepDone,
    Stopped,
    TrainingEvent,
    Warned,
    from_line,
)

ATTEMPT_STRIDE = 1_000_000_000
"""Ids of events: this times the attempt's number, plus the line."""


@dataclass(slots=True)
class _Run:
    """What the events of all attempts come to."""

    losses: dict[int, float] = field(default_factory=dict)
    held_out: dict[int, float] = field(default_factory=dict)
    spans: dict[int, tuple[float, float]] = field(default_factory=dict)
    """First and last time of each attempt."""
    memory_bytes: int | None = None
    moments: list[Moment] = field(default_factory=list)
    completed: Completed | None = None


def report_of(job: JobReport, lines: Iterable[tuple[int, bytes]], now: float) -> Report:
    """`lines`: the run's events with their ids, as far as they can be had; `now` is Unix time."""
    run = _read(lines, job.name)
    attempts = tuple(_tried(tried, run) for tried in job.attempts)
    happened = [Moment(at=each.at, phase=each.kind, text=each.text) for each in job.happened]
    return Report(
        run_id=job.id,
        name=job.name,
        written_at=now,
        summary=_summary(job, run, attempts),
        spec=job.spec,
        gate=_gate(job),
        estimate_basis=job.estimate.basis if job.estimate else "",
        timeline=tuple(sorted([*happened, *run.moments], key=lambda moment: moment.at)),
        attempts=attempts,
        evaluation_failures=tuple(
            f"attempt {tried.number}: {gate}" for tried in job.attempts for gate in tried.failed_gates
        ),
        curve=Curve(losses=tuple(sorted(run.losses.items())), held_out=tuple(sorted(run.held_out.items()))),
    )


def _summary(job: JobReport, run: _Run, attempts: tuple[Tried, ...]) -> Summary:
    estimate, result = job.estimate, run.completed
    seconds = [tried.seconds for tried in attempts if tried.seconds is not None]
    return Summary(
        model=job.model,
        method=job.method,
        status=job.state,
        reason=job.reason,
        estimated_usd=_usd(estimate),
        actual_usd=_actual_usd(estimate, attempts),
        estimated_memory=_memory(estimate),
        actual_memory=run.memory_bytes,
        estimated_seconds=_seconds(estimate),
        actual_seconds=sum(seconds) if seconds else None,
        final_loss=result.loss if result else _last(run.losses),
        held_out_loss=result.held_out_loss if result else _last(run.held_out),
        held_out_loss_before=result.held_out_loss_before if result else None,
        served_on=tuple(job.served),
    )


def _usd(estimate: EstimateReport | None) -> Range | None:
    if estimate is None or estimate.usd is None or estimate.usd_low is None or estimate.usd_high is None:
        return None
    return Range(value=estimate.usd, low=estimate.usd_low, high=estimate.usd_high)


def _memory(estimate: EstimateReport | None) -> Range | None:
    if estimate is None:
        return None
    return Range(value=estimate.memory_bytes, low=estimate.memory_bytes_low, high=estimate.memory_bytes_high)


def _seconds(estimate: EstimateReport | None) -> Range | None:
    if estimate is None:
        return None
    return Range(value=estimate.seconds, low=estimate.seconds_low, high=estimate.seconds_high)


def _actual_usd(estimate: EstimateReport | None, attempts: tuple[Tried, ...]) -> float | None:
    """Known where the node's price is: attempts on other nodes, or of unknown length, leave it unknown."""
    if estimate is None or estimate.usd_per_second is None or not attempts:
        return None
    if any(tried.node != estimate.node or tried.seconds is None for tried in attempts):
        return None
    return estimate.usd_per_second * sum(tried.seconds or 0.0 for tried in attempts)


def _gate(job: JobReport) -> str:
    return "" if job.gate is None else ": ".join(part for part in (job.gate.decision, job.gate.reason) if part)


def _tried(tried: TriedReport, run: _Run) -> Tried:
    span = run.spans.get(tried.number)
    return Tried(
        number=tried.number,
        node=tried.node,
        state=tried.state,
        cause=tried.cause,
        why=tried.why,
        reason=tried.reason,
        failure=tried.failure,
        ordered_at=tried.ordered_at,
        seconds=None if span is None else span[1] - span[0],
        step=tried.step,
        steps=tried.steps,
    )


def _read(lines: Iterable[tuple[int, bytes]], name: str) -> _Run:
    run = _Run()
    times: defaultdict[int, list[float]] = defaultdict(list)
    for ident, line in lines:
        if (event := from_line(line)) is None:
            continue
        attempt = max(1, ident // ATTEMPT_STRIDE)
        times[attempt].append(event.at)
        _take(run, event)
        if (text := _moment(event)) is not None:
            more = f" (the stack: mesh jobs crash {name} --attempt {attempt})" * bool(_crash(event))
            run.moments.append(Moment(at=event.at, phase=event.event, text=text + more))
    run.spans = {attempt: (min(ats), max(ats)) for attempt, ats in times.items()}
    return run


def _take(run: _Run, event: TrainingEvent) -> None:
    match event:
        case StepDone():
            run.memory_bytes = max(run.memory_bytes or 0, event.memory_bytes or 0) or None
            if event.loss is not None:
                run.losses[event.step] = event.loss
        case Evaluated(loss=float(loss)):
            run.held_out[event.step] = loss
        case Resumed() | RolledBack():
            gone = event.to_step if isinstance(event, RolledBack) else event.step
            run.losses = {step: loss for step, loss in run.losses.items() if step <= gone}
        case Completed():
            run.completed = event
        case _:
            pass


def _moment(event: TrainingEvent) -> str | None:
    """What is worth a line of the timeline."""
    match event:
        case Phase(state="started" | "completed" | "failed" | "interrupted", done=0):
            return f"{event.phase} {event.state}" + (f": {event.detail}" if event.detail else "")
        case DataReady():
            return _data(event)
        case Resumed():
            return f"after step {event.step}, from {event.checkpoint}"
        case RolledBack():
            return f"from step {event.step} to step {event.to_step}"
        case Relieved():
            return f"memory ran short at step {event.step}: {event.action}"
        case Restarted():
            return event.reason
        case Warned():
            return event.message
        case Stopped():
            return f"after step {event.step}"
        case Failed():
            return f"{event.kind}: {event.message}"
        case Completed():
            return f"after {event.step} steps"
    return None


def _data(event: DataReady) -> str:
    told = [f"{event.records:,} records, {event.tokens:,} tokens in {event.rows:,} rows"]
    if event.length_p50 is not None:
        told.append(f"lengths {event.length_p50} (half), {event.length_p95} (95 %), {event.length_max} (longest)")
    return ", ".join(told)


def _crash(event: TrainingEvent) -> str | None:
    return event.crash if isinstance(event, Failed) else None


def _last(points: dict[int, float]) -> float | None:
    return points[max(points)] if points else None
