"""Who leads the jobs of the mesh: one on every node, at work on the one that coordinates.

Theory of operation
-------------------
Every input may change records and gives effects (`core.job_effects`). Then whatever follows from the records as they
now are is done (`_think`): it asks for what is missing, and asks again while no answer comes, so that a lost message
costs time and nothing else. What is not in a record (who was asked when, who was heard when) is this coordinator's
alone and is lost with it.

A new coordinator collects the records of all members before it orders anything, for `COLLECT_S` at most; what comes
later joins all the same. While nobody leads, attempts go on, and tell the next coordinator.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Literal

from tiermesh.core.job_effects import (
    Acknowledge,
    AttemptTold,
    Collect,
    Copy,
    Decline,
    Heard,
    JobEffect,
    Order,
    Refusal,
    Save,
    Serve,
    Tell,
)
from tiermesh.core.job_rules import JobRules
from tiermesh.core.jobs import Attempt, AttemptId, Estimate, Happened, Job, JobId, Stamp, join, unique_name
from tiermesh.errors import JobExists, NotFound, Unavailable
from tiermesh.types import NodeId, View

Decision = Literal["approve", "optimize", "cancel", "retry"]
THINK_S = 0.5
"""How often the coordinator looks at what is under way."""


class Foreman:
    """Times are `now`, monotonic seconds, and `wall`, Unix seconds. Records are replaced whole."""

    def __init__(self, me: NodeId, rules: JobRules, records: Iterable[Job] = ()) -> None:
        self._me = me
        self._rules = rules
        self._records = {job.id: job for job in records}
        self._view = View()
        self._leads = False
        self._unanswered: set[JobId] = set()
        self._why: dict[JobId, str] = {}
        self._thought = -math.inf
        self._out: list[JobEffect] = []

    @property
    def records(self) -> Mapping[JobId, Job]:
        """All that this node knows."""
        return self._records

    @property
    def leads(self) -> bool:
        return self._leads

    @property
    def deadline(self) -> float:
        """When `tick` wants to be called."""
        busy = self._leads and any(not job.is_over for job in self._records.values())
        return self._thought + THINK_S if busy else math.inf

    def why(self, job: JobId) -> str:
        """Why it waits, or how it ended, for a person."""
        return self._why.get(job) or self._records[job].reason

    def set_rules(self, now: float, wall: float, rules: JobRules) -> list[JobEffect]:
        """The policy changed."""
        self._rules = rules
        return self._done(now, wall)

    def submit(self, now: float, wall: float, job: Job) -> list[JobEffect]:
        """A person wants this: ends with `Acknowledge` or `Decline`, perhaps of a later call. `job` has its id and
        what is asked for; name and time are made here."""
        known = self._records.get(job.id)
        if not self._leads:
            return [Decline(job.id, Unavailable("nobody coordinates just now; try again"))]
        if known is not None and not known.is_same_request(job):
            return [Decline(job.id, JobExists(f"id: {job.id} is another job, {known.name}; make a new id", param="id"))]
        if known is None:
            name = unique_name(job.name, (each.name for each in self._records.values()))
            asked = replace(job.asked, name=name, submitted_at=wall)
            self._put(replace(job, asked=asked, happened=(Happened(wall, "submit"),)))
        self._unanswered.add(job.id)
        return self._done(now, wall)

    def decide(self, now: float, wall: float, job: JobId, decision: Decision) -> list[JobEffect]:
        """A person decides. Raises `NotFound`, `NotPossibleNow`; `Unavailable` while this node does not lead."""
        self._known(job)
        return self._done(now, wall)

    def estimated(
        self, now: float, wall: float, job: JobId, node: NodeId, answer: Estimate | Refusal
    ) -> list[JobEffect]:
        """`node` answered `AskEstimate`, or could not be asked (a `Refusal`)."""
        return self._done(now, wall)

    def order_answered(
        self, now: float, wall: float, job: JobId, attempt: AttemptId, refusal: Refusal | None
    ) -> list[JobEffect]:
        """The node took the order (None), or would not. An order that got no answer is not reported at all."""
        return self._done(now, wall)

    def told(self, now: float, wall: float, node: NodeId, told: AttemptTold) -> Heard:
        """A node says how an attempt is. Only where this node leads."""
        job = self._records.get(told.job)
        attempt = None if job is None else job.attempt((told.number, told.ballot))
        if job is None or attempt is None:
            return Heard([Collect(node)])
        job = job.with_attempt(replace(attempt, told=told.told))
        if told.told.counts and job.state != "completed":
            self._put(job.after("complete", self._view.ballot, wall))
            self._out.append(Serve(self._records[job.id]))
        elif attempt.told != told.told:
            self._put(job)
        return Heard(self._done(now, wall), fenced=attempt.fenced or job.is_over, kept=told.told.is_end)

    def copied(self, now: float, wall: float, job: JobId, node: NodeId, stamp: Stamp) -> list[JobEffect]:
        """`node` has saved the copy that had this stamp."""
        self._acknowledge(job)
        return self._done(now, wall)

    def learnt(
        self, now: float, wall: float, records: Iterable[Job], sender: NodeId, *, whole: bool = False
    ) -> list[JobEffect]:
        """Records came from another node: a copy, an order's, or the answer to `Collect`. `whole`: these (with those
        before) are all it has. On every node, leading or not; what is to be kept comes back as `Save`."""
        for job in records:
            known = self._records.get(job.id)
            joined = job if known is None else join(known, job)
            if joined != known:
                self._put(joined)
        return self._done(now, wall)

    def view_changed(self, now: float, wall: float, view: View, leads: bool) -> list[JobEffect]:
        """There is a new view, or this node begins or ceases to lead."""
        self._view, self._leads = view, leads
        return self._done(now, wall)

    def tick(self, now: float, wall: float) -> list[JobEffect]:
        """The deadline has come, or it is anybody's guess."""
        return self._done(now, wall)

    # Within

    def _done(self, now: float, wall: float) -> list[JobEffect]:
        if self._leads:
            self._thought = now
            self._think(now, wall)
            self._think(now, wall)
        effects, self._out = self._out, []
        return effects

    def _think(self, now: float, wall: float) -> None:
        for job in list(self._records.values()):
            if job.state == "estimating":
                self._put(job.after("admit", self._view.ballot, wall))
            elif job.state == "queued":
                self._order(job, wall)

    def _order(self, job: Job, wall: float) -> None:
        ballot = self._view.ballot
        attempt = Attempt(number=1, ballot=ballot, node=self._me, spec=job.spec, ordered_at=wall)
        self._put(job.with_attempt(attempt).after("begin", ballot, wall))
        self._out.append(Order(self._records[job.id], attempt))

    def _put(self, job: Job) -> None:
        self._records[job.id] = job
        self._out += [Save(job), Tell(job)]
        others = [each for each, member in self._view.members.items() if each != self._me and member.state == "up"]
        if self._leads:
            self._out += [Copy(job, node) for node in others[: self._rules.replicas - 1]]
            if not others:
                self._acknowledge(job.id)

    def _acknowledge(self, job: JobId) -> None:
        if job in self._unanswered:
            self._unanswered.discard(job)
            self._out.append(Acknowledge(self._records[job]))

    def _known(self, job: JobId) -> Job:
        if not self._leads:
            raise Unavailable("nobody coordinates just now; try again")
        if job not in self._records:
            raise NotFound(f"no job is called {job!r}; `mesh jobs` lists them", param="job")
        return self._records[job]
