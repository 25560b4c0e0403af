"""What nodes answer, and what they say unasked: into the record at once, consequences are drawn in `core.job_steps`."""

from __future__ import annotations

from dataclasses import replace

from tiermesh.core import gate
from tiermesh.core.attempts import AttemptId
from tiermesh.core.job_effects import Refusal
from tiermesh.core.job_rules import OBJECTION_MAX_S
from tiermesh.core.jobs import Estimate, Job
from tiermesh.core.reign import Reign
from tiermesh.types import NodeId


def heard(reign: Reign, job: Job, attempt: AttemptId) -> None:
    """Its node spoke of an attempt: it lives, also where this coordinator thought otherwise."""
    current = job.current
    if current is None or current.id != attempt:
        return
    reign.lease(job, current).heard_at = reign.now
    if (
        current.told is not None
        and current.told.state == "running"
        and job.state in ("estimating", "waiting", "queued")
    ):
        reign.put(job.after("begin", reign.ballot, reign.wall, reason=f"goes on on {reign.name(current.node)}"))


def order_answered(reign: Reign, job: Job, attempt: AttemptId, refusal: Refusal | None) -> None:
    """The node took the order, or would not."""
    current = job.current
    if current is None or current.id != attempt or job.state not in ("running", "cancelling"):
        return
    if refusal is None:
        reign.lease(job, current).heard_at = reign.now
    elif refusal.for_good:
        reign.change(job, "fail", refusal.reason, refusal.failure)
    else:
        reign.object(job.id, current.node, refusal.reason)
        reign.change(job, "interrupt", f"{reign.name(current.node)}: {refusal.reason}")


def estimated(reign: Reign, job: Job, node: NodeId, answer: Estimate | Refusal) -> None:
    """A node said what the job takes there, or could not."""
    if reign.asked.get(job.id, (None, 0.0))[0] != node:
        return  # an answer that nobody waits for any more may be about another spec
    del reign.asked[job.id]
    reign.restless = True
    if job.state not in ("estimating", "queued"):
        return
    if isinstance(answer, Refusal):
        if answer.for_good:
            reign.change(job, "refuse", answer.reason, answer.failure)
        elif answer.shortage is not None:
            reign.is_short(job, node, answer.shortage)
        else:
            reign.object(job.id, node, answer.reason)
        return
    decision = _gate(reign, job, answer)
    job = job.noting(reign.wall, "estimate", reign.praise.pop(job.id, ""))
    if job.state == "estimating":
        estimate = replace(job, course=replace(job.course, estimate=answer))
        match decision.verdict:
            case "approve":
                reign.change(estimate, "admit", decision.reason)
            case "wait":
                reign.change(estimate, "ask", decision.reason)
            case "refuse":
                reign.change(estimate, "refuse", decision.reason, "over_budget")
    elif decision.verdict == "approve":
        reign.put(replace(job, course=replace(job.course, estimate=answer)))
    else:
        reign.object(job.id, node, decision.reason, OBJECTION_MAX_S)


def _gate(reign: Reign, job: Job, estimate: Estimate) -> gate.Decision:
    highest = estimate.usd if estimate.usd_high is None else estimate.usd_high
    asked = job.asked
    decision = gate.decide(highest, reign.rules.budget, approved=asked.approve, max_usd=asked.max_usd)
    if decision.verdict == "wait" and job.approved >= job.course.edition:
        return gate.Decision("approve", "approved")
    return decision
