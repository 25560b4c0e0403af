"""What must hold of jobs after every event, judged from outside: by what is on disks and by effects that were carried
out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tiermesh.core.attempts import Attempt, AttemptId
from tiermesh.core.job_effects import AttemptTold
from tiermesh.core.job_states import ENDS
from tiermesh.core.jobs import Job, JobId, join
from tiermesh.sim.invariants import Violation
from tiermesh.types import Ballot, NodeId

MAX_RETRIES = 3
MAX_USD = 5.0
SOFT_USD = 2.0


@dataclass(slots=True)
class JobInvariants:
    """Judges writes and effects as they are carried out."""

    accepted: dict[JobId, set[NodeId]] = field(default_factory=dict)
    """Who had it on disk when its submitter was answered."""
    cancelled: dict[JobId, float] = field(default_factory=dict)
    """When a person's cancel was safe on disk."""
    approved: set[JobId] = field(default_factory=set)
    forgotten: set[JobId] = field(default_factory=set)
    """Of which a person's forget was safe on disk."""

    def written(self, before: Job | None, after: Job) -> None:
        """A record is on a disk where this one was before."""
        _check_one_result(after)
        _check_one_at_work(after)
        _check_retries(after)
        if after.forgotten and not after.is_over:
            raise Violation(f"{after.id} is {after.state}, and forgotten")
        if before is not None:
            _check_growth(before, after)

    def acknowledged(self, job: JobId, leader: NodeId, holders: set[NodeId], others_up: bool) -> None:
        """A submitter was answered."""
        if leader not in holders:
            raise Violation(f"{job} was acknowledged and is not on the disk of {leader}")
        if others_up and len(holders) < 2:
            raise Violation(f"{job} was acknowledged and is on no other disk than that of {leader}")
        self.accepted.setdefault(job, set()).update(holders)

    def decided(self, leader: Ballot, job: Job, attempt: Attempt, known: Iterable[Job]) -> None:
        """It is decided to order an attempt; `known` is what the leader knows by then."""
        taken = [
            other.id
            for other in known
            if other.id != job.id
            and other.state == "running"
            and other.current is not None
            and other.current.node == attempt.node
            and leader == other.current.ballot == attempt.ballot == other.course.stamp[1] == job.course.stamp[1]
        ]
        if taken:
            raise Violation(f"{leader} orders {job.id} on {attempt.node}, where {taken} run")

    def ordered(self, leader: Ballot, durable: Job | None, job: Job, attempt: Attempt) -> None:
        """The order leaves; `durable` is what the leader's disk has."""
        held = None if durable is None else durable.attempt(attempt.id)
        if held is None:
            raise Violation(f"{leader} orders attempt {attempt.id} of {job.id}, which is not on its disk")
        if held.fenced:
            raise Violation(f"{leader} orders attempt {attempt.id} of {job.id}, which it has fenced")
        if job.cancel_asked:
            raise Violation(f"{leader} orders {job.id}, which a person cancelled")
        if attempt.retries > MAX_RETRIES:
            raise Violation(f"{leader} orders retry {attempt.retries} of {job.id}")
        usd = float(str(job.asked.spec["usd"]))
        if usd > MAX_USD or (usd > SOFT_USD and job.id not in self.approved):
            raise Violation(f"{leader} orders {job.id}, which costs {usd} and nobody approved")

    def answered(self, job: Job | None, attempt: AttemptId, told: AttemptTold, fenced: bool) -> None:
        """A leader answers a node that spoke of an attempt, and has this record by then."""
        known = None if job is None else job.attempt(attempt)
        if job is None or known is None:
            if fenced:
                raise Violation(f"attempt {attempt} of {told.job} is to stop, of which nothing is known")
        elif not known.is_end and fenced != (known.fenced or job.is_over):
            raise Violation(f"attempt {attempt} of {job.id} {'is to stop' if fenced else 'may go on'}")

    def lost(self, disks: Mapping[NodeId, Mapping[JobId, Job]]) -> None:
        """Is every accepted job on some disk?"""
        for job in self.accepted:
            if not any(job in disk for disk in disks.values()):
                raise Violation(f"{job} was accepted and is on no disk")

    def met(self, records: list[Job]) -> None:
        """Do records of one job join to the same, whatever the order?"""
        forward, backward = records[0], records[-1]
        for each in records[1:]:
            forward = join(forward, each)
        for each in reversed(records[:-1]):
            backward = join(each, backward)
        if forward != backward:
            raise Violation(f"records of {records[0].id} join to different ones")
        for each in records:
            if join(forward, each) != forward:
                raise Violation(f"a record of {each.id} still adds to the join of all")
        _check_one_result(forward)


def _check_one_result(job: Job) -> None:
    good: list[AttemptId] = [each.id for each in job.attempts if each.told is not None and each.told.counts]
    if bool(good) and job.state != "completed" and job.is_over:
        raise Violation(f"{job.id} is {job.state} and attempt {good[0]} has completed")
    if job.state == "completed":
        counting = [each.id for each in job.attempts if job.state_of(each) == "completed"]
        if job.result is None or job.result.id != min(good, default=None) or counting != [job.result.id]:
            raise Violation(f"{job.id} counts {counting} of the completed attempts {good}")


def _check_one_at_work(job: Job) -> None:
    live = [each.ballot for each in job.attempts if each.is_live]
    if len(set(live)) < len(live):
        raise Violation(f"{job.id} has two attempts at work that one coordinator ordered")


def _check_retries(job: Job) -> None:
    failed = {each.retries for each in job.attempts if each.is_end and not each.counts}
    for attempt in job.attempts:
        if attempt.retries > MAX_RETRIES:
            raise Violation(f"{job.id} has retry {attempt.retries}")
        if attempt.retries and attempt.retries - 1 not in failed:
            raise Violation(f"{job.id} has retry {attempt.retries}, and the one before has not failed")
        if attempt.cause == "retried" and attempt.retries == 0:
            raise Violation(f"{job.id}: attempt {attempt.id} is a retry that nobody counted")


def _check_growth(before: Job, after: Job) -> None:
    """What only grows, and what never changes."""
    if after.stamp < before.stamp:
        raise Violation(f"{after.id} goes back from {before.stamp} to {after.stamp}")
    if before.is_over:
        ranks = ENDS[before.state], ENDS.get(after.state, 0)
        if ranks[0] > ranks[1]:
            raise Violation(f"{after.id} was {before.state} and is {after.state}")
        if before.result is not None and (after.result is None or after.result.id > before.result.id):
            raise Violation(f"the result of {after.id} was that of {before.result.id}")
    said = [(job.cancel_asked, job.forgotten, job.approved) for job in (before, after)]
    if any(old > new for old, new in zip(*said, strict=True)):
        raise Violation(f"{after.id} forgot what a person decided")
    if after.asked.submitted_at > before.asked.submitted_at:
        raise Violation(f"{after.id} was submitted again")
    for old in before.attempts:
        new = after.attempt(old.id)
        if new is None:
            raise Violation(f"{after.id} forgot attempt {old.id}")
        if (old.node, old.spec, old.retries) != (new.node, new.spec, new.retries):
            raise Violation(f"attempt {old.id} of {after.id} changed")
        if old.fenced > new.fenced or old.is_end > new.is_end or old.counts > new.counts:
            raise Violation(f"attempt {old.id} of {after.id} is no longer at its end, or fenced")
