"""After an attempt failed, or ended with a result that is not good enough: another spec, or the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tiermesh.core import evaluation
from tiermesh.core.attempts import Attempt, Told
from tiermesh.core.jobs import Job
from tiermesh.core.reign import Reign
from tiermesh.core.remediation import Remedy, Stop, remedy


def judged(job: Job, told: Told) -> Told:
    """With what is wrong with its result."""
    if told.state != "completed":
        return told
    return replace(told, failed_gates=tuple(each.said for each in _failed_checks(job, told)))


def untreated(job: Job) -> Attempt | None:
    """The attempt that failed last, when nothing was done about it yet."""
    if job.current is not None or job.course.retry > job.retries:
        return None
    ended = [each for each in job.attempts if each.is_end and not each.counts and not each.fenced]
    failed = [each for each in ended if each.retries == job.retries]
    return failed[-1] if failed else None


def treat(reign: Reign, job: Job, attempt: Attempt) -> None:
    """Queue the job with an edited spec, send it through the gate again, or end it."""
    told = attempt.told
    assert told is not None, "it has failed"
    kind, reason = told.failure or "unexplained", told.reason or "failed"
    if told.state == "completed":
        checks = _failed_checks(job, told)  # none, where a coordinator of another version judged
        kind, reason = checks[0].failure if checks else "unexplained", "; ".join(told.failed_gates)
    found = _remedy(reign, job, kind, told)
    if isinstance(found, Stop):
        reign.change(job, "fail", f"{reason}; {found.why}", kind)
        return
    changed = job.after(
        "reconsider" if found.costs_more else "retry", reign.ballot, reign.wall, reason=f"{reason}; {found.why}"
    )
    edition = job.course.edition + found.costs_more
    course = replace(changed.course, spec=found.spec, retry=job.retries + 1, edition=edition)
    reign.put(replace(changed, course=course))


def _remedy(reign: Reign, job: Job, kind: str, told: Told) -> Remedy | Stop:
    tried = _tried(job)
    if len(tried) <= job.retries:  # a part of the story is known to others only
        tried = [tried[0]] * (job.retries + 1 - len(tried)) + tried
    return remedy(
        kind, tried, max_retries=reign.rules.max_retries, reached=told.micro_batch_size, steps=told.steps or None
    )


def _tried(job: Job) -> list[Mapping[str, object]]:
    """Specs that failed by themselves, one for each retry."""
    failed = {each.retries: each.spec for each in job.attempts if each.is_end and not each.counts}
    return [failed[retries] for retries in sorted(failed)]


def _failed_checks(job: Job, told: Told) -> tuple[evaluation.Check, ...]:
    return evaluation.failed(evaluation.judge(told.result, job.asked.gates))
