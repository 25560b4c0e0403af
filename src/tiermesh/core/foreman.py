"""Who leads the jobs of the mesh: one on every node, at work on the one that coordinates.

Theory of operation
-------------------
An input changes records; then whatever follows from the records as they now are is done (`core.job_steps`), and what
changed is saved, copied and told. Nothing follows from an input alone, so that it does not matter whether this
coordinator was told something or another one was, whose record was joined. A message that is lost is sent again while
what it asks for is missing.

A new coordinator collects the records of all members before it orders anything, for `COLLECT_S` at most; what comes
later joins all the same. While nobody leads, attempts go on, and tell the next coordinator.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Literal

from tiermesh.core import job_answers
from tiermesh.core.attempts import Attempt, AttemptId, Told, join_told
from tiermesh.core.dispatch import wanted, why
from tiermesh.core.job_effects import Acknowledge, AttemptTold, Decline, Heard, JobEffect, Refusal, Save, Tell
from tiermesh.core.job_rules import AGAIN_S, THINK_S, JobRules
from tiermesh.core.job_steps import think
from tiermesh.core.jobs import Estimate, Happened, Job, JobId, Stamp, clip, join, unique_name
from tiermesh.core.placement import unknown_node
from tiermesh.core.reign import Reign
from tiermesh.core.remediation import optimize
from tiermesh.core.treatment import judged
from tiermesh.errors import InvalidSpec, JobExists, NotFound, NotPossibleNow, TiermeshError, Unavailable
from tiermesh.types import NodeId, View

Decision = Literal["approve", "optimize", "cancel", "retry", "forget"]
LAG_S = 1.0
"""A coordinator whose loop stood still for longer lets the leases of others run on for as long."""


class Foreman:
    """Times are `now`, monotonic seconds, and `wall`, Unix seconds. Records are replaced whole. Effects come out of
    every call, to be carried out in order."""

    def __init__(self, me: NodeId, rules: JobRules, records: Iterable[Job] = ()) -> None:
        self._me = me
        self._rules = rules
        self._records = {job.id: job for job in records}
        self._reign: Reign | None = None
        self._unanswered: set[JobId] = set()
        self._called = 0.0

    @property
    def records(self) -> Mapping[JobId, Job]:
        """All that this node knows."""
        return self._records

    @property
    def leads(self) -> bool:
        return self._reign is not None

    @property
    def deadline(self) -> float:
        """When `tick` wants to be called."""
        return math.inf if self._reign is None or not self._reign.is_busy else self._called + THINK_S

    def why(self, job: JobId) -> str:
        """Why it waits, or how it ended, for a person."""
        known = self._records[job]
        if self._reign is None:
            return known.reason
        return self._reign.faults.get(job) or why(self._reign, known)

    # Inputs of people

    def submit(self, now: float, wall: float, job: Job) -> list[JobEffect]:
        """A person wants this: ends with `Acknowledge` or `Decline`, perhaps of a later call. `job` has its id, what is
        asked for, and `data` that happened where that was looked at; its name is made unique and its time is set here.
        The same job again is one job."""
        self._at(now, wall)
        known = self._records.get(job.id)
        if (error := self._refusal(job, known)) is not None:
            return [Decline(job.id, error)]
        assert self._reign is not None
        if known is None:
            name = unique_name(job.name, (each.name for each in self._records.values() if not each.forgotten))
            asked = replace(job.asked, name=name, submitted_at=wall)
            seen = next((each.text for each in job.happened if each.kind == "data"), "")
            job = replace(job, asked=asked, happened=(Happened(wall, "submit"),))
            self._reign.put(job.noting(wall, "data", seen) if seen else job)
        self._unanswered.add(job.id)
        self._reign.safer.add(job.id)
        return self._done()

    def decide(self, now: float, wall: float, job: JobId, decision: Decision) -> list[JobEffect]:
        """A person decides; durable once the effects are carried out. Raises `NotFound`, `NotPossibleNow`, and
        `Unavailable` while this node does not lead."""
        self._at(now, wall)
        reign, known = self._leading(), self._known(job)
        match decision:
            case "cancel":
                if known.state not in ("cancelling", "cancelled"):
                    reign.put(replace(known.after("cancel", reign.ballot, wall, reason="cancelled"), cancel_asked=True))
            case "approve":
                approved = known.after("approve", reign.ballot, wall, reason="approved")
                reign.put(replace(approved, approved=max(known.approved, known.course.edition)))
            case "optimize":
                self._optimize(reign, known, wall)
            case "retry":
                if known.state not in ("estimating", "queued"):
                    raise NotPossibleNow(f"job {known.name} is {known.state}: it waits for no node")
                reign.forget_objections(job)
            case "forget":
                if not known.is_over:
                    raise NotPossibleNow(f"job {known.name} is {known.state}: cancel it first")
                reign.put(replace(known, forgotten=True))
        return self._done()

    def note(self, now: float, wall: float, job: JobId, kind: str, text: str) -> list[JobEffect]:
        """Something happened to a job that changes nothing: its result is served, say. Only where this node leads."""
        self._at(now, wall)
        if self._reign is not None and job in self._records:
            self._reign.put(self._records[job].noting(wall, kind, text))
        return self._done()

    # Inputs of nodes

    def estimated(
        self, now: float, wall: float, job: JobId, node: NodeId, answer: Estimate | Refusal
    ) -> list[JobEffect]:
        """`node` answered `AskEstimate`, or could not be asked (a `Refusal`)."""
        self._at(now, wall)
        if self._reign is not None:
            job_answers.estimated(self._reign, self._records[job], node, answer)
        return self._done()

    def order_answered(
        self, now: float, wall: float, job: JobId, attempt: AttemptId, refusal: Refusal | None
    ) -> list[JobEffect]:
        """The node took the order (None), or would not. An order that got no answer is not reported at all."""
        self._at(now, wall)
        if self._reign is not None:
            job_answers.order_answered(self._reign, self._records[job], attempt, refusal)
        return self._done()

    def told(self, now: float, wall: float, node: NodeId, told: AttemptTold) -> Heard:
        """A node says how an attempt is. Only where this node leads; elsewhere nothing is kept."""
        self._at(now, wall)
        job = self._records.get(told.job)
        attempt = None if job is None else job.attempt((told.number, told.ballot))
        if self._reign is None:
            return Heard([])
        if job is None or attempt is None:
            self._reign.wants(node)
            return Heard(self._done())
        is_heard = True
        try:
            _learn(self._reign, job, attempt, told.told)
            job_answers.heard(self._reign, self._records[job.id], attempt.id)
        except Exception as error:  # noqa: BLE001  what can't be judged was not said: silence is dealt with
            self._reign.complain(job.id, error)
            is_heard = False
        effects = self._done()
        job = self._records[job.id]
        attempt = job.attempt(attempt.id)
        assert attempt is not None
        kept = is_heard and told.told.is_end and self._reign.is_current_elsewhere(job)
        return Heard(effects, fenced=not attempt.is_end and (attempt.fenced or job.is_over), kept=kept)

    def copied(self, now: float, wall: float, job: JobId, node: NodeId, stamp: Stamp) -> list[JobEffect]:
        """`node` has saved the copy that had this stamp."""
        self._at(now, wall)
        if self._reign is not None:
            self._reign.has_copy(job, node, stamp)
        return self._done()

    def learnt(
        self, now: float, wall: float, records: Iterable[Job], sender: NodeId, *, whole: bool = False
    ) -> list[JobEffect]:
        """Records came from another node: a copy, an order's, or the answer to `Collect`. `whole`: these are all it
        has. On every node, leading or not; what is to be kept comes back as `Save`."""
        self._at(now, wall)
        if whole and self._reign is not None:
            self._reign.forget_copies(sender)
        changed: list[JobEffect] = []
        for job in records:
            known = self._records.get(job.id)
            joined = job if known is None else join(known, job)
            if self._reign is not None:
                self._reign.joined(known, joined, job, sender)
            elif joined != known:
                self._records[job.id] = joined
                changed += [Save(joined), Tell(joined)]
        if whole and self._reign is not None:
            self._reign.handover.got(sender)
        return changed + self._done()

    # Inputs of the shell

    def view_changed(self, now: float, wall: float, view: View, leads: bool) -> list[JobEffect]:
        """There is a new view, or this node begins or ceases to lead."""
        self._at(now, wall)
        if not leads:
            self._reign = None
            return self._unanswerable()
        if self._reign is None:
            self._reign = Reign(now, self._me, self._rules, self._records)
            self._called = now
            self._reign.at(now, wall)
        self._reign.see(view)
        return self._done()

    def set_rules(self, now: float, wall: float, rules: JobRules) -> list[JobEffect]:
        """The policy changed."""
        self._at(now, wall)
        self._rules = rules
        if self._reign is not None:
            self._reign.set_rules(rules)
        return self._done()

    def tick(self, now: float, wall: float) -> list[JobEffect]:
        """The deadline has come, or it is anybody's guess."""
        self._at(now, wall)
        return self._done()

    # Within

    def _refusal(self, job: Job, known: Job | None) -> TiermeshError | None:
        if self._reign is None:
            return Unavailable("nobody coordinates just now; try again")
        if known is not None and not known.is_same_request(job):
            return JobExists(f"id: {job.id} is another job, {known.name}; make a new id", param="id")
        rules, here = self._rules, self._reign.members_up
        if known is None and here < rules.min_members:
            return Unavailable(f"{here} of the {rules.min_members} nodes are here that must be before jobs are taken")
        limit = rules.waiting_limit
        if known is None and len(self._reign.index) >= limit:
            return Unavailable(f"{limit} jobs wait here already", retry_after_s=60)
        if known is None and (wrong := unknown_node(wanted(job), self._reign.names)):
            return InvalidSpec(wrong, param="target_gpu")
        return None

    def _optimize(self, reign: Reign, job: Job, wall: float) -> None:
        changed = job.after("optimize", reign.ballot, wall)
        cheaper = optimize(job.spec, None if job.estimate is None else job.estimate.steps)
        if cheaper is None:
            raise NotPossibleNow(f"job {job.name}: nothing is left to make cheaper; approve or cancel it")
        course = replace(changed.course, spec=cheaper.spec, reason=cheaper.why, edition=job.course.edition + 1)
        reign.put(replace(changed, course=course))

    def _at(self, now: float, wall: float) -> None:
        if self._reign is None:
            return
        self._reign.at(now, wall)
        if (late := now - self._called - THINK_S) > LAG_S and self._reign.is_busy:
            self._reign.excuse(late)
        self._called = now

    def _done(self) -> list[JobEffect]:
        if self._reign is None:
            return []
        effects = think(self._reign)
        safer, self._reign.safer = self._reign.safer, set()
        for job in sorted(job for job in self._unanswered & safer if self._reign.is_safe(job)):
            self._unanswered.discard(job)
            effects.append(Acknowledge(self._records[job]))
        return effects

    def _unanswerable(self) -> list[JobEffect]:
        """Whoever waits is to ask the next coordinator; the job may have reached it all the same."""
        left, self._unanswered = sorted(self._unanswered), set()
        return [Decline(job, Unavailable("the coordinator changed; try again", retry_after_s=AGAIN_S)) for job in left]

    def _leading(self) -> Reign:
        if self._reign is None:
            raise Unavailable("nobody coordinates just now; try again")
        return self._reign

    def _known(self, job: JobId) -> Job:
        if job not in self._records:
            raise NotFound(f"no job is called {job!r}; `mesh jobs` lists them", param="job")
        return self._records[job]


def _learn(reign: Reign, job: Job, attempt: Attempt, told: Told) -> None:
    """What was said of an attempt goes into its job's record."""
    news = join_told(attempt.told, judged(job, _clipped(told)))
    if news != attempt.told:
        job = job.with_attempt(replace(attempt, told=news))
        if news is not None and news.state == "completed":
            job = job.noting(reign.wall, "evaluation", "; ".join(news.failed_gates) or "passed")
        if job.result is not None and job.state != "completed":
            job = job.after("complete", reign.ballot, reign.wall)
        reign.put(job, durable=_matters(attempt.told, news))


def _clipped(told: Told) -> Told:
    return replace(told, reason=clip(told.reason), failed_gates=())


def _matters(before: Told | None, after: Told | None) -> bool:
    """Is it worth a write? Figures are not: the next ones come within a second."""
    assert after is not None
    if before is None or after.state != "running":
        return True
    return (before.state, before.phase, before.checkpoint, before.artifact, before.holders) != (
        after.state,
        after.phase,
        after.checkpoint,
        after.artifact,
        after.holders,
    )
