"""What a coordinator knows of jobs besides their records, from the moment it begins to lead until it ceases to.

Everything here may be lost without harm: it says who was asked, heard and ordered when, so that nothing is sent twice
without need and nothing is waited for in vain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from tiermesh.core.attempts import Attempt, AttemptId
from tiermesh.core.handover import Handover
from tiermesh.core.job_effects import (
    AskEstimate,
    Collect,
    Copy,
    Fault,
    JobEffect,
    Order,
    Save,
    Serve,
    Shortage,
    Stop,
    Tell,
)
from tiermesh.core.job_index import JobIndex
from tiermesh.core.job_rules import AGAIN_S, ESTIMATE_S, OBJECTION_MAX_S, OBJECTION_S, JobRules
from tiermesh.core.job_states import JobEvent
from tiermesh.core.jobs import Job, JobId, Stamp
from tiermesh.core.leases import Lease, Objection
from tiermesh.core.record_copies import RecordCopies
from tiermesh.types import NO_BALLOT, Ballot, Member, NodeId, SessionId, View


class Reign:
    """Shared by `core.foreman`, which takes what comes in, and `core.job_steps`, which draws the consequences.

    `at` says what time it is, before anything else at every input.
    """

    def __init__(self, now: float, me: NodeId, rules: JobRules, records: dict[JobId, Job]) -> None:
        self.me = me
        self.now = self.began_at = now
        self.wall = 0.0
        self.rules = rules
        self.records = records
        self.ballot: Ballot = NO_BALLOT
        self.view = View()
        self.copies = RecordCopies(rules.replicas - 1)
        self.handover = Handover(now)
        self.why: dict[JobId, str] = {}
        """Why jobs wait, where that is not worth a write."""
        self.praise: dict[JobId, str] = {}
        """Why the node was chosen that is asked for an estimate."""
        self.asked: dict[JobId, tuple[NodeId, float]] = {}
        """Estimates under way: of whom, since when."""
        self.turns: dict[str, float] = {}
        """When a job of each submitter was begun last, Unix seconds."""
        self.stops: dict[JobId, tuple[int, int]] = {}
        """How often in a row a job's attempts stopped by themselves, and at which step."""
        self.faults: dict[JobId, str] = {}
        """What is wrong with records that nothing can be decided about: they are left alone until they change."""
        self.index = JobIndex(records)
        self.stirred = set(self.index.ids())
        """Jobs about which something is new."""
        self.safer: set[JobId] = set()
        """Jobs of which there may be enough copies now."""
        self.restless = True
        """Is there anything new to draw consequences from?"""
        self.thought_at = now
        self._others: list[NodeId] = []
        self._fresh: set[JobId] = set()
        """Records that have just changed, and are to be copied at once."""
        self._unsafe = set(records)
        """Records that are not known to be where they should be."""
        self._leases: dict[JobId, Lease] = {}
        self._objections: dict[JobId, dict[NodeId, Objection]] = {}
        self._shortages: dict[JobId, dict[NodeId, tuple[SessionId, Mapping[str, object], Shortage]]] = {}
        """Nodes that are too small for a job with such a spec; restarted, one may have more memory."""
        self._complained: dict[JobId, str] = {}
        """The last fault of each job that was told of."""
        self._served: dict[JobId, AttemptId] = {}
        self._out: list[JobEffect] = []
        for job in records.values():
            self._serve(job)

    # Time and members

    def at(self, now: float, wall: float) -> None:
        """It is now."""
        self.now, self.wall = now, wall

    def see(self, view: View) -> None:
        """The members are these."""
        if view.ballot != self.ballot:
            self.handover.again()
        self.view, self.ballot = view, view.ballot
        others = [member for member in view.members.values() if member.id != self.me and member.state != "down"]
        others.sort(key=lambda member: (member.state != "up", member.joined, member.id))
        self.handover.members({member.id: member.session for member in others})
        if (ids := [member.id for member in others]) != self._others:
            self._others = ids
            self._unsafe = self._fresh = set(self.records)
            self.safer = set(self.records)
        self.restless = True

    def excuse(self, late_s: float) -> None:
        """The own loop stood still: nobody was silent in that time."""
        for lease in self._leases.values():
            lease.heard_at += late_s

    def set_rules(self, rules: JobRules) -> None:
        """The policy changed."""
        self.rules = rules
        self.copies.wanted = rules.replicas - 1
        self._unsafe = self._fresh = set(self.records)
        self.restless = True

    def member(self, node: NodeId) -> Member | None:
        """None when it is down or unknown."""
        member = self.view.members.get(node)
        return None if member is None or member.state == "down" else member

    def name(self, node: NodeId) -> str:
        """For a person."""
        member = self.view.members.get(node)
        return node[:8] if member is None else member.status.name

    @property
    def names(self) -> dict[NodeId, str]:
        """Of all members, those that are down too."""
        return {member.id: member.status.name for member in self.view.members.values()}

    @property
    def members_up(self) -> int:
        """This node included."""
        return 1 + len(self._others)

    @property
    def is_busy(self) -> bool:
        """Is there anything to be done or to be waited for?"""
        return bool(len(self.index) or self._unsafe or self.handover.is_missing_some)

    # Records

    def put(self, job: Job, *, durable: bool = True) -> Job:
        """The record is this from now on. Not `durable`: figures, not worth a write."""
        known = self.records.get(job.id)
        if durable and (known is None or job.stamp <= known.stamp):
            job = replace(job, stamp=(job.stamp[0] + 1 if known is None else known.stamp[0] + 1, self.ballot))
        before, result = None if known is None else known.result, job.result
        if before is not None and result is not None and before.id != result.id:
            job = job.noting(self.wall, "result", f"the result is that of attempt {result.number} now")
        return self._keep(job, durable=durable)

    def change(self, job: Job, event: JobEvent, reason: str = "", failure: str | None = None) -> Job:
        """A transition by this coordinator, now."""
        return self.put(job.after(event, self.ballot, self.wall, reason=reason, failure=failure))

    def joined(self, known: Job | None, joined: Job, received: Job, sender: NodeId) -> None:
        """A record came in, and both together know this."""
        if joined == received or (joined == known and received.stamp >= joined.stamp):
            self.has_copy(joined.id, sender, joined.stamp)
        if joined == known:
            return
        if known is None or (joined == received and received.stamp > known.stamp):
            self._keep(joined)
        else:
            self.put(joined)

    def _keep(self, job: Job, *, durable: bool = True) -> Job:
        self.records[job.id] = job
        if not durable:
            self._out.append(Tell(job))
            return job
        self._forget_unsent(job.id)
        self._out += [Save(job), Tell(job)]
        self._unsafe.add(job.id)
        self._fresh.add(job.id)
        self.copies.changed(job.id)
        self.faults.pop(job.id, None)
        self.index.put(job)
        if job.state not in ("estimating", "queued"):
            self.asked.pop(job.id, None)
        if job.is_over:
            self._close(job.id)
        else:
            self.stirred.add(job.id)
        self._serve(job)
        self.restless = True
        return job

    def _forget_unsent(self, job: JobId) -> None:
        """A write that nothing waits for yet is overtaken by the next one."""
        while self._out and isinstance(last := self._out[-1], (Save, Tell)) and last.job.id == job:
            self._out.pop()

    def _close(self, job: JobId) -> None:
        for memory in (self.why, self.praise, self.asked, self.stops, self._leases, self._objections, self._shortages):
            memory.pop(job, None)

    def _serve(self, job: Job) -> None:
        result = None if job.forgotten else job.result
        if result is not None and self._served.get(job.id) != result.id:
            self._served[job.id] = result.id
            self._out.append(Serve(job))

    # Copies

    def is_safe(self, job: JobId) -> bool:
        """Is the record where it must be before its submitter is answered?"""
        return self.copies.is_known_elsewhere(job, self._others)

    def is_current_elsewhere(self, job: Job) -> bool:
        """Would the record, as it is, outlive this node?"""
        return self.copies.is_current_elsewhere(job, self._others)

    def look_again(self) -> None:
        """Time has passed: what was not answered is asked again."""
        self.restless = True
        self._fresh |= self._unsafe

    def wants(self, node: NodeId) -> None:
        """`node` speaks of something that is not known here."""
        self.handover.want(node)

    def has_copy(self, job: JobId, node: NodeId, stamp: Stamp) -> None:
        """`node` has saved the record as it was at that stamp."""
        self.copies.has(job, node, stamp)
        self.safer.add(job)
        self._fresh.add(job)

    def forget_copies(self, node: NodeId) -> None:
        """All that `node` has is about to be said: what it has not, it has lost."""
        held = self.copies.forget(node)
        self._unsafe |= held
        self._fresh |= held

    def flush(self) -> list[JobEffect]:
        """Ask for what is missing, and give all effects away."""
        self._out += [Collect(node) for node in self.handover.due(self.now)]
        fresh, self._fresh = self._fresh, set()
        for job in sorted(fresh & self._unsafe):
            targets = self.copies.due(self.now, self.records[job], self._others)
            if targets is None:
                self._unsafe.discard(job)
            else:
                self._out += [Copy(self.records[job], node) for node in targets]
        effects, self._out = self._out, []
        return effects

    # Nodes that said no

    def object(self, job: JobId, node: NodeId, reason: str, wait_s: float | None = None) -> None:
        """`node` won't, for now."""
        known = self._objections.setdefault(job, {})
        if wait_s is None:
            before = known.get(node)
            wait_s = OBJECTION_S if before is None else min(2 * before.wait_s, OBJECTION_MAX_S)
        known[node] = Objection(reason, self.now + wait_s, wait_s)

    def objection(self, job: JobId, node: NodeId) -> str:
        """Why it would not a moment ago; empty when it may be asked."""
        known = self._objections.get(job, {}).get(node)
        return known.reason if known is not None and known.until > self.now else ""

    def forget_objections(self, job: JobId) -> None:
        """Ask them all again."""
        self._objections.pop(job, None)
        self._shortages.pop(job, None)
        self.restless = True

    def is_short(self, job: Job, node: NodeId, shortage: Shortage) -> None:
        """`node` is too small for it, for as long as its daemon runs."""
        if (member := self.member(node)) is not None:
            self._shortages.setdefault(job.id, {})[node] = member.session, job.spec, shortage

    def shortages(self, job: Job) -> dict[NodeId, Shortage]:
        """Of the nodes that are here, for the job as it is to be trained now."""
        found = ((node, self.shortage(job, node)) for node in self._shortages.get(job.id, {}))
        return {node: shortage for node, shortage in found if shortage is not None}

    def shortage(self, job: Job, node: NodeId) -> Shortage | None:
        """The node's own, as in `shortages`."""
        if (known := self._shortages.get(job.id, {}).get(node)) is None:
            return None
        session, spec, shortage = known
        member = self.member(node)
        return shortage if member is not None and member.session == session and spec == job.spec else None

    # Faults

    @contextmanager
    def guarding(self, job: JobId) -> Iterator[None]:
        """Whatever goes wrong within is the fault of this job's record (of a damaged disk, or of a node that writes
        others): it is set aside, and all other jobs go on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  whatever it is, it must not stop the others
            self.faults[job] = self.complain(job, error)
            self.index.remove(job)
            self.stirred.discard(job)

    def complain(self, job: JobId, error: Exception) -> str:
        """Have it logged, once; the same for a person."""
        said = f"its record can't be followed: {type(error).__name__}: {error}"
        if self._complained.get(job) != said:
            self._complained[job] = said
            self._out.append(Fault(self.records[job], error))
        return said

    # Attempts

    def lease(self, job: Job, attempt: Attempt) -> Lease:
        """Of the job's current attempt; one that this coordinator has not met before was heard just now."""
        lease = self._leases.get(job.id)
        if lease is None or lease.attempt != attempt.id:
            member = self.member(attempt.node)
            session = None if member is None else member.session
            lease = self._leases[job.id] = Lease(attempt.id, self.now, session, self.now, -1)
        return lease

    def order(self, job: Job, attempt: Attempt) -> None:
        """Tell the node to begin or to go on."""
        member = self.member(attempt.node)
        lease = self.lease(job, attempt)
        lease.ordered_at = self.now
        lease.session = None if member is None else member.session
        lease.stop_since = lease.stop_sent_at = None
        if attempt.told is not None and attempt.told.state == "stopped":
            lease.seq = attempt.told.seq
        self._out.append(Order(job, attempt))

    def stop(self, job: Job, attempt: Attempt, why: str) -> float:
        """Tell the node to end it after a checkpoint, again and again; seconds since the first time."""
        lease = self.lease(job, attempt)
        if lease.stop_since is None:
            lease.stop_since = self.now
        if lease.stop_sent_at is None or self.now - lease.stop_sent_at >= AGAIN_S:
            lease.stop_sent_at = self.now
            self._out.append(Stop(job.id, attempt.id, attempt.node, why))
        return self.now - lease.stop_since

    def estimator(self, job: JobId) -> NodeId | None:
        """Who was asked what the job takes, and may still answer."""
        node, since = self.asked.get(job, (None, 0.0))
        if node is not None and (self.member(node) is None or self.now - since >= ESTIMATE_S):
            del self.asked[job]
            return None
        return node

    def ask_estimate(self, job: Job, node: NodeId) -> None:
        """What would it take there?"""
        self.asked[job.id] = node, self.now
        self._out.append(AskEstimate(job, node))
