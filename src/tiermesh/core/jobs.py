"""A job as its record: what was asked for, what was decided, what became of each attempt; and the join of two.

Theory of operation
-------------------
The coordinator writes a job's record, other nodes keep copies. In a partition there are two coordinators and both
write. So a record consists of parts of which each joins with its like in one way only, whatever the order and however
often (a semilattice), and two nodes that have heard the same have the same record:

    asked          the request; of two (a submission that reached both halves) the earlier
    course         where the job is; an end beats what is no end, completed beats cancelled beats failed beats refused,
                   and of two that are not ends that of the later stamp counts
    attempts       the union by (number, ballot); what a node said last of one counts, an end before all
    happened       the union
    cancel_asked, approved, holders of data    once said, said for ever

One thing follows from another: a job is `completed` exactly when one of its attempts counts, and its result is the
first of those by number and ballot. After the end nothing changes, but that another half may bring a better end or an
earlier result.

An attempt is one order to train on one node with one spec. Stopped, or its node restarted, the same attempt goes on
there; anywhere else, or with another spec, it is the next attempt, and the one before is fenced.

| state      | event     | next       |                                                            |
|------------|-----------|------------|------------------------------------------------------------|
| estimating | admit     | queued     | the estimate is within the soft limit                      |
| estimating | ask       | waiting    | a person is to decide                                      |
| estimating | refuse    | refused    | over the limit, or no node will ever take it               |
| waiting    | approve   | queued     | by a person                                                |
| waiting    | optimize  | estimating | with a cheaper spec, then the gate again                   |
| queued     | begin     | running    | an attempt is ordered on a node, or told of by one         |
| queued     | refuse    | refused    | no node will ever take it                                  |
| queued     | fail      | failed     | moved too often                                            |
| running    | interrupt | queued     | stopped after a checkpoint, or its node is gone            |
| running    | retry     | queued     | it failed, and an edited spec may do better                |
| running    | reconsider| estimating | the same, with a spec that costs more: the gate again      |
| running    | fail      | failed     |                                                            |
| running    | cancel    | cancelling | the worker saves first                                     |
| cancelling | interrupt | cancelled  |                                                            |
| cancelling | fail      | cancelled  | nobody wants to know any more                              |
| others that are no end | cancel   | cancelled | nothing runs                                     |
| estimating, waiting    | begin    | running   | the other half had gone further                  |
| any but completed      | complete | completed | an attempt ended well; late, from a node that was out of reach, too |
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Literal, NewType

from tiermesh.core.codec import decode_value, encode_value
from tiermesh.core.evaluation import Gates
from tiermesh.errors import NotPossibleNow
from tiermesh.types import NO_BALLOT, AttemptState, Ballot, JobState, NodeId

JobId = NewType("JobId", str)
"""A ULID that the submitter made: the job's idempotency key."""
AttemptId = tuple[int, Ballot]
"""Number, and the ballot under which it was ordered first: two halves of a partition may both have a second attempt."""
Stamp = tuple[int, Ballot]
"""Of a change: one more than that of the change before, and who made it. Unique, for a ballot has one holder."""
JobEvent = Literal[
    "admit",
    "approve",
    "ask",
    "refuse",
    "optimize",
    "begin",
    "interrupt",
    "retry",
    "reconsider",
    "complete",
    "fail",
    "cancel",
]
Cause = Literal["first", "moved", "retried"]
"""Why there is this attempt: the first, the node before was lost or left, or the one before failed."""

TRANSITIONS: Mapping[tuple[JobState, JobEvent], JobState] = {
    ("estimating", "admit"): "queued",
    ("estimating", "ask"): "waiting",
    ("estimating", "refuse"): "refused",
    ("estimating", "cancel"): "cancelled",
    ("estimating", "begin"): "running",
    ("estimating", "complete"): "completed",
    ("waiting", "approve"): "queued",
    ("waiting", "optimize"): "estimating",
    ("waiting", "cancel"): "cancelled",
    ("waiting", "begin"): "running",
    ("waiting", "complete"): "completed",
    ("queued", "begin"): "running",
    ("queued", "refuse"): "refused",
    ("queued", "fail"): "failed",
    ("queued", "cancel"): "cancelled",
    ("queued", "complete"): "completed",
    ("running", "interrupt"): "queued",
    ("running", "retry"): "queued",
    ("running", "reconsider"): "estimating",
    ("running", "complete"): "completed",
    ("running", "fail"): "failed",
    ("running", "cancel"): "cancelling",
    ("cancelling", "interrupt"): "cancelled",
    ("cancelling", "fail"): "cancelled",
    ("cancelling", "complete"): "completed",
    ("cancelled", "complete"): "completed",
    ("failed", "complete"): "completed",
    ("refused", "complete"): "completed",
}
ENDS: Mapping[JobState, int] = {"refused": 1, "failed": 2, "cancelled": 3, "completed": 4}
"""States that nothing follows, with their rank when two halves of a partition ended differently."""
OVER: frozenset[JobState] = frozenset(ENDS)
NO_STAMP: Stamp = (0, NO_BALLOT)
HAPPENED_LIMIT = 500
"""Events kept of a job, the newest: a hundred attempts with five each."""
TEXT_LIMIT = 2000
"""Characters of a reason: a sentence and its advice."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """A file by its content; `name` is what its owner calls it, and says its format."""

    sha256: str
    name: str
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A saved state of a run. `artifact` is the digest of its manifest; `holders` are nodes that have it whole."""

    step: int
    artifact: str = ""
    holders: tuple[NodeId, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the node that trains said of an attempt. None is unknown."""

    seq: int = 0
    """Rises with everything that is said of one attempt, also over restarts of the node (as Unix milliseconds do)."""
    state: AttemptState = "running"
    phase: str = ""
    step: int = 0
    steps: int = 0
    loss: float | None = None
    tokens_per_s: float | None = None
    eta_s: float | None = None
    checkpoint: Checkpoint | None = None
    failure: str | None = None
    """The kind of failure, when it failed."""
    micro_batch_size: int | None = None
    """What a run that failed for lack of memory had come down to by itself."""
    reason: str = ""
    result: Mapping[str, object] = field(default_factory=dict)
    """What the run told at its good end."""
    artifact: str = ""
    """The digest of the result's manifest."""
    holders: tuple[NodeId, ...] = ()
    """Nodes that have the result whole."""
    failed_gates: tuple[str, ...] = ()
    """What the coordinator found wanting in the result; nodes don't say this."""

    @property
    def counts(self) -> bool:
        """Is this a good end?"""
        return self.state == "completed" and not self.failed_gates

    @property
    def is_end(self) -> bool:
        """Will the node do no more about it, whatever it is told? A stopped attempt may go on."""
        return self.state in ("completed", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One order to train. All but `told` and `fenced` never change."""

    number: int
    ballot: Ballot
    node: NodeId
    spec: Mapping[str, object]
    cause: Cause = "first"
    why: str = ""
    retries: int = 0
    """How many attempts up to here were made because one before had failed."""
    ordered_at: float = 0.0
    """Unix seconds."""
    told: Told | None = None
    fenced: bool = False
    """Replaced by another attempt: whoever works at it is to stop."""

    @property
    def id(self) -> AttemptId:
        return self.number, self.ballot

    @property
    def is_live(self) -> bool:
        """May it still come to something?"""
        return not self.fenced and not self.is_end

    @property
    def is_end(self) -> bool:
        return self.told is not None and self.told.is_end

    @property
    def counts(self) -> bool:
        return self.told is not None and self.told.counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a job will take on `node`, each with its interval. None is unknown, and so is money without a price."""

    node: NodeId
    memory_bytes: int
    memory_bytes_low: int = 0
    memory_bytes_high: int = 0
    seconds: float = 0.0
    seconds_low: float = 0.0
    seconds_high: float = 0.0
    usd: float | None = None
    usd_low: float | None = None
    usd_high: float | None = None
    device: str = ""
    usd_per_second: float | None = None
    steps: int = 0
    effective_batch: int = 0
    basis: str = ""
    """What it was reckoned from, for a person."""


@dataclass(frozen=True, slots=True, order=True)
class Happened:
    """One event of a job. `at` is Unix seconds; `kind` is a `JobEvent`, or `submit`, `order`, `gate`, `estimate`,
    `result`, ..."""

    at: float
    kind: str
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The request, as it was accepted."""

    name: str
    spec: Mapping[str, object]
    """A checked training spec as plain JSON; its paths are names of datasets."""
    data: Dataset
    eval_data: Dataset | None = None
    priority: int = 0
    """Higher goes first."""
    submitter: str = ""
    """Among whom the mesh is shared fairly: whoever says so itself, or an address."""
    open_data: bool = False
    """May data and checkpoints go to other nodes of an open mesh than the one that trains?"""
    gates: Gates = field(default_factory=Gates)
    """What the result must reach."""
    approve: bool = False
    """Has the submitter agreed beforehand to what a person would be asked about?"""
    max_usd: float | None = None
    """The submitter's own limit."""
    submitted_at: float = 0.0
    """Unix seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """Where the job is, as the coordinator of `stamp` decided."""

    stamp: Stamp = NO_STAMP
    state: JobState = "estimating"
    reason: str = ""
    """Why it waits, or how it ended, for a person."""
    failure: str | None = None
    """The kind of failure, where there is one."""
    spec: Mapping[str, object] | None = None
    """What the next attempt is to train; None: as asked for."""
    edition: int = 0
    """How often the gate was to judge another spec."""
    retry: int = 0
    """How many retries the next attempt will have been; higher than `Job.retries` when it is one itself."""
    estimate: Estimate | None = None
    ended_at: float | None = None
    """Unix seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A record. Replaced whole."""

    id: JobId
    asked: Asked
    course: Course = Course()
    attempts: tuple[Attempt, ...] = ()
    """By number, then ballot."""
    happened: tuple[Happened, ...] = ()
    """By time."""
    holders: tuple[NodeId, ...] = ()
    """Nodes that are known to have the data, or had it."""
    approved: int = -1
    """The highest edition of the spec that a person has agreed to."""
    cancel_asked: bool = False
    stamp: Stamp = NO_STAMP
    """Of the last change: whoever holds this stamp, or a higher one, has heard of everything before."""

    @property
    def name(self) -> str:
        return self.asked.name

    @property
    def data(self) -> Dataset:
        return self.asked.data

    @property
    def eval_data(self) -> Dataset | None:
        return self.asked.eval_data

    @property
    def spec(self) -> Mapping[str, object]:
        """What the next attempt is to train."""
        return self.asked.spec if self.course.spec is None else self.course.spec

    @property
    def state(self) -> JobState:
        return self.course.state

    @property
    def reason(self) -> str:
        return self.course.reason

    @property
    def failure(self) -> str | None:
        return self.course.failure

    @property
    def estimate(self) -> Estimate | None:
        return self.course.estimate

    @property
    def submitted_at(self) -> float:
        return self.asked.submitted_at

    @property
    def started_at(self) -> float | None:
        """Unix seconds of the first order."""
        return min((attempt.ordered_at for attempt in self.attempts), default=None)

    @property
    def ended_at(self) -> float | None:
        return self.course.ended_at

    @property
    def is_over(self) -> bool:
        return self.state in OVER

    @property
    def retries(self) -> int:
        return max((attempt.retries for attempt in self.attempts), default=0)

    @property
    def result(self) -> Attempt | None:
        """The attempt whose result is the job's, and is served under its name."""
        return next((attempt for attempt in self.attempts if attempt.counts), None)

    @property
    def current(self) -> Attempt | None:
        """The newest attempt that is neither at its end nor replaced."""
        return next((attempt for attempt in reversed(self.attempts) if attempt.is_live), None)

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The one furthest on that any attempt told of."""
        told = [each.told.checkpoint for each in self.attempts if each.told is not None and each.told.checkpoint]
        return max(told, key=lambda each: each.step, default=None)

    def attempt(self, attempt: AttemptId) -> Attempt | None:
        return next((each for each in self.attempts if each.id == attempt), None)

    def state_of(self, attempt: Attempt) -> AttemptStanding:
        """How one of its attempts stands."""
        if attempt.counts:
            return "completed" if attempt is self.result else "superseded"
        if attempt.is_end:
            return "failed"
        if attempt.fenced:
            return "superseded"
        if self.is_over:
            return "stopped"
        return "ordered" if attempt.told is None else attempt.told.state

    def after(self, event: JobEvent, by: Ballot, at: float, *, reason: str = "", failure: str | None = None) -> Job:
        """The job after `event`, as decided under the ballot `by`. Raises `NotPossibleNow` when the table lacks it."""
        state = TRANSITIONS.get((self.state, event))
        if state is None:
            raise NotPossibleNow(f"job {self.name} is {self.state}: nothing is left to {event}")
        changed = self.touched(by)
        course = replace(
            self.course,
            stamp=changed.stamp,
            state=state,
            reason=clip(reason),
            failure=failure if state in OVER else None,
            ended_at=at if state in OVER else None,
        )
        return replace(changed, course=course).noting(at, event, reason)

    def touched(self, by: Ballot) -> Job:
        """With the stamp of one change more."""
        return replace(self, stamp=(self.stamp[0] + 1, by))

    def noting(self, at: float, kind: str, text: str = "") -> Job:
        """With one event more."""
        return replace(self, happened=_events(self.happened, (Happened(at, kind, clip(text)),)))

    def with_attempt(self, attempt: Attempt) -> Job:
        """With this attempt, new or as it is now."""
        return replace(self, attempts=_attempts(self.attempts, (attempt,)))

    def is_same_request(self, other: Job) -> bool:
        """Was the same thing asked for? A name is a label."""
        mine, theirs = self.asked, other.asked
        return (mine.spec, mine.data.sha256, mine.eval_data, mine.gates) == (
            theirs.spec,
            theirs.data.sha256,
            theirs.eval_data,
            theirs.gates,
        )


AttemptStanding = Literal["ordered", "running", "stopped", "completed", "failed", "superseded"]


def join(one: Job, other: Job) -> Job:
    """What both records of a job know: commutative, associative, idempotent."""
    assert one.id == other.id, "records of one job"
    if one is other or one == other:
        return one
    return Job(
        id=one.id,
        asked=min(one.asked, other.asked, key=lambda each: (each.submitted_at, canonical(each))),
        course=_course(one.course, other.course),
        attempts=_attempts(one.attempts, other.attempts),
        happened=_events(one.happened, other.happened),
        holders=tuple(sorted({*one.holders, *other.holders})),
        approved=max(one.approved, other.approved),
        cancel_asked=one.cancel_asked or other.cancel_asked,
        stamp=max(one.stamp, other.stamp),
    )


def join_attempts(one: Attempt, other: Attempt) -> Attempt:
    """What both know of one attempt."""
    assert one.id == other.id
    first = min(one, other, key=lambda each: canonical(replace(each, told=None, fenced=False)))
    return replace(first, told=join_told(one.told, other.told), fenced=one.fenced or other.fenced)


def job_to_dict(job: Job) -> dict[str, object]:
    """A record as a JSON object."""
    encoded = encode_value(job)
    assert isinstance(encoded, dict)
    return encoded


def job_from_dict(data: object) -> Job:
    """The inverse of `job_to_dict`. Raises ValueError."""
    job: Job = decode_value(Job, data)
    return job


def unique_name(wanted: str, taken: Iterable[str]) -> str:
    """`wanted`, with a number after it when another job has that name."""
    names = set(taken)
    numbered = (f"{wanted}-{number}" for number in range(2, len(names) + 3))
    return wanted if wanted not in names else next(name for name in numbered if name not in names)


def canonical(value: object) -> str:
    """Equal for equal values alone: the last resort of an order."""
    return json.dumps(encode_value(value), sort_keys=True)


def clip(text: str) -> str:
    """No longer than a sentence with its advice."""
    return text if len(text) <= TEXT_LIMIT else f"{text[: TEXT_LIMIT - 1]}…"


def _course(one: Course, other: Course) -> Course:
    mine, theirs = ((ENDS.get(each.state, 0), each.stamp) for each in (one, other))
    if mine == theirs:
        return one if one == other else max(one, other, key=canonical)
    return one if mine > theirs else other


def _told_order(told: Told) -> tuple[bool, bool, int, str]:
    return told.counts, told.is_end, told.seq, canonical(told)


def join_told(one: Told | None, other: Told | None) -> Told | None:
    """What was said last; a good end before an end before all."""
    if one is None or other is None or one == other:
        return other if one is None else one
    return max(one, other, key=_told_order)


def _attempts(one: tuple[Attempt, ...], other: tuple[Attempt, ...]) -> tuple[Attempt, ...]:
    known: dict[AttemptId, Attempt] = {}
    for each in (*one, *other):
        known[each.id] = join_attempts(known[each.id], each) if each.id in known else each
    return tuple(known[key] for key in sorted(known))


def _events(*parts: tuple[Happened, ...]) -> tuple[Happened, ...]:
    """The newest; so that what is left does not depend on the order of joins."""
    every: frozenset[Happened] = reduce(lambda known, part: known | frozenset(part), parts, frozenset())
    return tuple(sorted(every)[-HAPPENED_LIMIT:])
