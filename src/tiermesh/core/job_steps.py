"""What a coordinator does about each job as it now is. Nothing here waits for an input: whatever is missing is asked
for, and whatever has come is acted upon, by whomever it was told.

    any            two live attempts: the one that is further on goes on. To be cancelled.
    estimating     ask the likeliest node what it takes; then the gate
    queued         in the order of `core.job_line`, where `core.placement` says
    running        heard of in time? stopped? failed: remediation. Its node drains: stop it, to move it
    cancelling     say so until it has stopped, or its node is gone, or long enough
"""

from __future__ import annotations

from dataclasses import replace

from tiermesh.core.attempts import PREPARING, Attempt, Told
from tiermesh.core.dispatch import appraise, dispatch
from tiermesh.core.job_effects import JobEffect
from tiermesh.core.job_rules import MAX_INTERRUPTIONS, SILENT_LEASES, STOP_S, THINK_S
from tiermesh.core.jobs import Job
from tiermesh.core.reign import Reign
from tiermesh.core.treatment import treat, untreated

ROUNDS = 4
"""What follows from what was just decided is decided at once; what is left, half a second later."""


def think(reign: Reign) -> list[JobEffect]:
    """Draw all consequences. Cheap when there is nothing new."""
    if reign.now - reign.thought_at >= THINK_S:
        reign.look_again()
    for _ in range(ROUNDS):
        if not reign.restless or not reign.handover.is_over(reign.now):
            break
        reign.restless, reign.thought_at = False, reign.now
        stirred, reign.stirred = reign.stirred, set()
        at_work = {job.id for job in reign.index.of("running", "cancelling")}
        for job in sorted(stirred | at_work):
            if not reign.records[job].is_over:
                with reign.guarding(job):
                    _step(reign, reign.records[job])
        appraise(reign)
        dispatch(reign)
    return reign.flush()


def _step(reign: Reign, job: Job) -> None:
    job = _with_one_live_attempt(reign, job)
    if job.cancel_asked and job.state != "cancelling":
        job = reign.change(job, "cancel", "cancelled")
    match job.state:
        case "estimating" | "waiting" | "queued" if (attempt := untreated(job)) is not None:
            treat(reign, job.after("begin", reign.ballot, reign.wall), attempt)
        case "running":
            _running(reign, job)
        case "cancelling":
            _cancelling(reign, job)


def _with_one_live_attempt(reign: Reign, job: Job) -> Job:
    """Two halves of a partition may each have ordered one: the one further on is kept."""
    live = [attempt for attempt in job.attempts if attempt.is_live]
    if len(live) < 2:
        return job
    kept = max(live, key=lambda each: (each.retries, 0 if each.told is None else each.told.step, each.id))
    for attempt in live:
        if attempt is not kept:
            job = job.with_attempt(replace(attempt, fenced=True))
    return reign.put(job)


def _running(reign: Reign, job: Job) -> None:
    attempt = job.current
    if attempt is None:
        if (ended := untreated(job)) is not None:
            treat(reign, job, ended)
        else:
            reign.change(job, "interrupt", "its attempts were replaced")
        return
    lease, member = reign.lease(job, attempt), reign.member(attempt.node)
    silent_s = reign.now - lease.heard_at
    if attempt.told is not None and attempt.told.state == "stopped" and attempt.told.seq > lease.seq:
        _stopped(reign, job, attempt, attempt.told)
    elif member is None:
        if silent_s >= reign.rules.lease_s:
            reign.change(job, "interrupt", f"{reign.name(attempt.node)} is away")
    elif member.state == "draining":
        reign.stop(job, attempt, "its node drains")
    elif member.session != lease.session:
        lease.heard_at = reign.now
        reign.order(job, attempt)
    elif silent_s >= SILENT_LEASES * reign.rules.lease_s:
        reign.object(job.id, attempt.node, "does not answer")
        reign.change(job, "interrupt", f"{reign.name(attempt.node)} does not answer")
    elif silent_s >= reign.rules.lease_s <= reign.now - lease.ordered_at:
        reign.order(job, attempt)


def _stopped(reign: Reign, job: Job, attempt: Attempt, told: Told) -> None:
    if told.phase == PREPARING:  # it never began: a refusal that took its time
        reign.object(job.id, attempt.node, told.reason)
        reign.change(job, "interrupt", f"{reign.name(attempt.node)}: {told.reason}")
        return
    count, step = reign.stops.get(job.id, (0, -1))
    was_asked = reign.lease(job, attempt).stop_since is not None
    count = 0 if was_asked else 1 if told.step > step else count + 1
    reign.stops[job.id] = count, told.step
    if count > MAX_INTERRUPTIONS:
        ended = replace(told, state="failed", failure="unexplained", reason=f"{told.reason}, again and again")
        reign.put(job.with_attempt(replace(attempt, told=ended)))
    else:
        reign.change(job, "interrupt", told.reason or "stopped after a checkpoint")


def _cancelling(reign: Reign, job: Job) -> None:
    attempt = job.current
    if attempt is None:
        reign.change(job, "fail", "cancelled")
    elif (
        attempt.told is not None
        and attempt.told.state == "stopped"
        and attempt.told.seq > reign.lease(job, attempt).seq
    ):
        reign.change(job, "interrupt", "cancelled")
    elif reign.member(attempt.node) is None:
        reign.change(job, "interrupt", f"cancelled; {reign.name(attempt.node)} is away and will be told")
    elif reign.stop(job, attempt, "cancelled") >= STOP_S:
        reign.change(job, "interrupt", f"cancelled; {reign.name(attempt.node)} did not say that it stopped")
